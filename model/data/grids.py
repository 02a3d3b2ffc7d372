"""Records as a model takes them: prompts, and an image from its sketch to its last details."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from model.data.shards import Shards
from model.decoding.loop import pack_blocks
from model.transformer.config import GeneratorConfig


@dataclass(frozen=True)
class Grids:
    """A batch of prompts and images."""

    text_ids: Tensor
    """int64 [b, text_length]."""
    cells: tuple[Tensor, ...]
    """What each stage of details starts from, int64 [b, c] in raster order: the sketch, then grids of 4, 16, ... times as
    many cells. The sketch is there without a stage, too."""
    details: tuple[Tensor, ...]
    """What each stage makes of that: int64 [b, c, 4], a 2x2 block for each cell, row by row."""

    @property
    def coarse(self) -> Tensor:
        """The sketch, int64 [b, n]."""
        return self.cells[0]

    def first(self, rows: int) -> "Grids":
        return self.map(lambda ids: ids[:rows])

    def map(self, change: Callable[[Tensor], Tensor]) -> "Grids":
        """The same change made to every tensor."""
        cells, details = (tuple(change(ids) for ids in grids) for grids in (self.cells, self.details))
        return Grids(change(self.text_ids), cells, details)


def read_grids(shards: Shards, rows: Sequence[int], shape: GeneratorConfig) -> Grids:
    """The named rows as tensors: of the grids that they hold, those that a model of this shape draws.

    Raises `DataError` for a model that draws others.
    """
    held, drawn = shards.layout.grids, shape.grids
    first = held.index(drawn[0]) if drawn[0] in held else len(held)
    if held[first : first + len(drawn)] != drawn:
        raise DataError(
            f"the model draws grids of {_sizes(drawn)} cells; the shards hold {_sizes(held)}",
            where="coarse_grid",
            fix="tokenize the data for these grids (tokenizer.detail_stages), or train a model of others",
        )
    records = shards.batch(rows)
    codes = records.codes[first : first + len(drawn)]
    blocks = [pack_blocks(finer, *grid) for finer, grid in zip(codes[1:], drawn, strict=False)]
    cells = codes[:-1] or codes
    return Grids(torch.from_numpy(records.text_ids), _tensors(cells), _tensors(blocks))


def _tensors(arrays: Sequence[np.ndarray]) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array) for array in arrays)


def _sizes(grids: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{rows}x{columns}" for rows, columns in grids)

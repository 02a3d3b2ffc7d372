"""How a parameter of the whole model is cut into the pieces that ranks hold, and put together again."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Cut:
    """A parameter cut along one axis. Where it is several matrices in one (queries, keys and values, say) each of its
    `sections` is cut by itself, and a rank has a piece of each."""

    axis: int
    sections: tuple[int, ...]
    """Sizes along the axis."""

    def piece(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """What `rank` of `ranks` holds of it, in memory of its own."""
        parts = whole.split(self.sections, self.axis)
        return torch.cat([part.tensor_split(ranks, self.axis)[rank] for part in parts], self.axis).contiguous()

    def sizes(self, rank: int, ranks: int) -> list[int]:
        """How much of each section is a rank's."""
        return [len(own_range(size, rank, ranks)) for size in self.sections]

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """The whole parameter, from the pieces of all ranks in their order."""
        sizes = [self.sizes(rank, len(pieces)) for rank in range(len(pieces))]
        parts = [piece.split(size, self.axis) for piece, size in zip(pieces, sizes, strict=True)]
        return torch.cat([part[section] for section in range(len(self.sections)) for part in parts], self.axis)


def own_range(size: int, rank: int, ranks: int) -> range:
    """Which of `size` things are a rank's, as `torch.tensor_split` has it: the first ranks get one more."""
    each, more = divmod(size, ranks)
    first = rank * each + min(rank, more)
    return range(first, first + each + (rank < more))


def cut_parameter(whole: Tensor, cut: Cut, rank: int, ranks: int) -> nn.Parameter:
    """A rank's piece, as a parameter that knows how it was cut (`cut_of`).

    `tensor_model_parallel` is DeepSpeed's name for one that counts on every rank in a gradient's norm.
    """
    piece = nn.Parameter(cut.piece(whole.detach(), rank, ranks), requires_grad=whole.requires_grad)
    piece.cut, piece.tensor_model_parallel = cut, True  # pyright: ignore[reportAttributeAccessIssue]
    return piece


def cut_of(parameter: Tensor) -> Cut | None:
    """How it was cut; None for one that every rank has whole."""
    return getattr(parameter, "cut", None)

"""How training hides and damages tokens.

Masking follows MaskGIT (Chang et al. 2022): the masked share is cos(pi/2 * u), u uniform. More grids than that
are masked whole, because decoding in few steps asks from a blank grid most of the time; and some visible tokens
are replaced by random ones, because decoding feeds the model its own mistakes. All is drawn on the CPU, so that a seed
gives the same on every device.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.data.grids import Grids


def draw_mask(batch: int, tokens: int, blank_share: float, generator: torch.Generator) -> Tensor:
    """Which positions are hidden, bool [batch, tokens]: cosine shares, and `blank_share` of the rows whole."""
    share = torch.cos(torch.rand(batch, 1, generator=generator) * math.pi / 2).clamp(min=1 / tokens)
    blank = torch.rand(batch, 1, generator=generator) < blank_share
    return torch.rand(batch, tokens, generator=generator) < torch.where(blank, 1.0, share)


def draw_replacements(
    size: Sequence[int], share: float, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Which ids are replaced, bool of `size`, and by which uniformly random codes, int64 of `size`."""
    return torch.rand(size, generator=generator) < share, torch.randint(vocabulary, size, generator=generator)


def corrupt(ids: Tensor, share: float, vocabulary: int, generator: torch.Generator) -> Tensor:
    """`ids` with `share` of them replaced by uniformly random codes; same shape."""
    replaced, others = draw_replacements(ids.shape, share, vocabulary, generator)
    return torch.where(replaced.to(ids.device), others.to(ids.device), ids)


def drop_prompts(grids: Grids, share: float, unconditional: Sequence[int], generator: torch.Generator) -> Grids:
    """The batch with `share` of its prompts replaced by the one that says nothing, int64 [text_length]."""
    if not share:
        return grids
    dropped = torch.rand(len(grids.text_ids), 1, generator=generator) < share
    nothing = torch.tensor(unconditional, device=grids.text_ids.device)
    return replace(grids, text_ids=torch.where(dropped.to(nothing.device), nothing, grids.text_ids))

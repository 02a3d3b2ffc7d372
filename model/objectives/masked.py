"""Block-parallel prediction: guess the masked tokens of a grid from the prompt and the tokens still visible.

Masking follows MaskGIT (Chang et al. 2022): the masked share is cos(pi/2 * u), u uniform. More grids than that
are masked whole, because decoding in few steps asks from a blank grid most of the time; and some visible tokens
are replaced by random ones, because decoding feeds the model its own mistakes.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.grids import Grids
from model.decoding.loop import stage_name
from model.objectives.settings import MaskingSettings
from model.transformer.model import Generator


def draw_mask(batch: int, tokens: int, blank_share: float, generator: torch.Generator) -> Tensor:
    """Which positions are hidden, bool [batch, tokens]: cosine shares, and `blank_share` of the rows whole.

    Drawn on the CPU, so that a seed gives the same masks on every device.
    """
    share = torch.cos(torch.rand(batch, 1, generator=generator) * math.pi / 2).clamp(min=1 / tokens)
    blank = torch.rand(batch, 1, generator=generator) < blank_share
    return torch.rand(batch, tokens, generator=generator) < torch.where(blank, 1.0, share)


def corrupt(ids: Tensor, share: float, vocabulary: int, generator: torch.Generator) -> Tensor:
    """`ids` with `share` of them replaced by uniformly random codes; same shape."""
    replaced = torch.rand(ids.shape, generator=generator) < share
    random = torch.randint(vocabulary, ids.shape, generator=generator)
    return torch.where(replaced.to(ids.device), random.to(ids.device), ids)


def drop_prompts(grids: Grids, share: float, unconditional: Sequence[int], generator: torch.Generator) -> Grids:
    """The batch with `share` of its prompts replaced by the one that says nothing, int64 [text_length]."""
    if not share:
        return grids
    dropped = torch.rand(len(grids.text_ids), 1, generator=generator) < share
    nothing = torch.tensor(unconditional, device=grids.text_ids.device)
    return replace(grids, text_ids=torch.where(dropped.to(nothing.device), nothing, grids.text_ids))


def seen_plan(
    model: Generator, grids: Grids, settings: MaskingSettings, generator: torch.Generator
) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The images' own plans as training shows them, some of their tokens replaced: values [b, p, channels]; and the true
    codes, int64 [b, p]. None for a shape without a plan."""
    if model.plan is None:
        return None, None
    values = model.plan.encode(grids.coarse, grids.details)
    codes = model.plan.codes(values)
    other = corrupt(codes, settings.plan_corruption, model.plan.quantizer.codes, generator)
    return torch.where((other == codes)[..., None], values, model.plan.values(other)), codes


def parallel_losses(
    model: Generator, grids: Grids, settings: MaskingSettings, generator: torch.Generator, fine_rows: int
) -> dict[str, Tensor]:
    """Mean cross-entropies (nats a token): `coarse_loss` of the sketch's masked tokens given the plan, `plan_loss` of the
    plan given the prompt, for a shape that has one, and the `fine_losses` of the first `fine_rows` images given both."""
    unknown = model.config.visual_vocabulary
    batch, tokens = grids.coarse.shape
    plan, codes = seen_plan(model, grids, settings, generator)
    hidden = draw_mask(batch, tokens, settings.coarse_blank_share, generator).to(grids.coarse.device)
    visible = corrupt(grids.coarse, settings.corruption, unknown, generator)
    logits, last = model.train_coarse(grids.text_ids, torch.where(hidden, unknown, visible), plan)
    targets = grids.coarse[hidden]
    losses = {"coarse_loss": F.cross_entropy(logits[hidden].float(), targets, label_smoothing=settings.label_smoothing)}
    if model.plan is not None and codes is not None:
        losses["plan_loss"] = model.plan.prior.loss(last, codes)
    if fine_rows:
        losses |= fine_losses(model, grids, settings, generator, fine_rows, plan)
    return losses


def fine_losses(
    model: Generator,
    grids: Grids,
    settings: MaskingSettings,
    generator: torch.Generator,
    rows: int,
    plan: Tensor | None = None,
) -> dict[str, Tensor]:
    """The `fine_loss` of each stage of details, of the first `rows` images; of a quarter as many for each further stage,
    as an image has four times the cells there. `plan` are the plans' values [b, p, channels]."""
    losses = {}
    for stage in range(1, len(grids.details) + 1):
        taken = max(1, rows >> 2 * (stage - 1))
        shown = None if plan is None else plan[:taken]
        losses[f"{stage_name(stage)}_loss"] = fine_loss(model, grids.first(taken), settings, generator, shown, stage)
    return losses


def fine_loss(
    model: Generator,
    grids: Grids,
    settings: MaskingSettings,
    generator: torch.Generator,
    plan: Tensor | None = None,
    stage: int = 1,
) -> Tensor:
    """Mean cross-entropy (nats) of a stage's masked blocks, given the slightly damaged grid before it and, for an image
    that was drawn by a plan, the plan's values [b, p, channels]."""
    unknown = model.config.visual_vocabulary
    before, blocks = grids.cells[stage - 1], grids.details[stage - 1]
    cells = corrupt(before, settings.corruption, unknown, generator)
    batch, tokens = before.shape
    hidden = draw_mask(batch, tokens, settings.fine_blank_share, generator).to(before.device)
    visible = torch.where(hidden[..., None], unknown, blocks)
    logits = model.train_fine(grids.text_ids, cells, visible, plan, stage)
    return F.cross_entropy(logits[hidden].float().flatten(0, 1), blocks[hidden].flatten())

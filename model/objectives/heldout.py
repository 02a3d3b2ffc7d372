"""The held-out loss under fixed masks: one comparable number per sample for data that no judge can score."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.grids import Grids
from model.objectives.masked import draw_mask
from model.transformer.model import Generator

DRAWS = 2
"""Masks that every sketch is scored under."""
_MASK_SEED = 20_240_601
_BATCH = 64


def fixed_masks(samples: int, tokens: int, draws: int = DRAWS) -> Iterator[Tensor]:
    """The hidden tokens of held-out sketches, in batches: bool [draws, n, tokens].

    A constant seed and the samples' positions decide, so all models that share a tokenizer answer the same questions.
    """
    for start in range(0, samples, _BATCH):
        rows = min(_BATCH, samples - start)
        generator = torch.Generator().manual_seed(_MASK_SEED + start)
        hidden = torch.stack([draw_mask(rows, tokens, 0.5, generator) for _ in range(draws)])
        hidden[:, :, 0] |= ~hidden.any(2)  # a row without a hidden token has no loss
        yield hidden


@torch.no_grad()
def heldout_losses(model: Generator, grids: Grids, draws: int = DRAWS) -> list[float]:
    """Cross-entropy in nats per token of each sample, the grids averaged by their token counts.

    Every sketch is scored under `draws` of the `fixed_masks`, given its own plan, and pays for the plan as well: for a
    blank sketch the sum bounds its loss from above, so models with other plans, or none, compare. The details are scored
    from blank grids, as decoding asks for them, each stage given the true grid before it. Across tokenizers the numbers
    mean nothing.
    """
    unknown = model.config.visual_vocabulary
    losses: list[np.ndarray] = []
    samples, tokens = grids.coarse.shape
    for batch, masks in enumerate(fixed_masks(samples, tokens, draws)):
        part = slice(batch * _BATCH, (batch + 1) * _BATCH)
        asked = grids.map(lambda ids, part=part: ids[part])
        coarse = asked.coarse
        past, last = model.prefill(asked.text_ids)
        plan = plan_codes(model, asked)
        coarse_mean = torch.zeros(len(coarse))
        if plan is not None and model.plan is not None:
            logits = model.plan.prior.logits(last, plan)
            each = F.cross_entropy(logits.flatten(0, 1), plan.flatten(), reduction="none").view_as(plan)
            coarse_mean += each.sum(1) / tokens
        for hidden in masks:
            logits = model.coarse_logits(past, torch.where(hidden, unknown, coarse), plan)
            each = F.cross_entropy(logits.flatten(0, 1), coarse.flatten(), reduction="none").view_as(coarse)
            coarse_mean += (each * hidden).sum(1) / hidden.sum(1) / draws
        total, count = coarse_mean * tokens, tokens
        for stage, (cells, blocks) in enumerate(zip(asked.cells, asked.details, strict=False), start=1):
            logits = model.fine_logits(past, cells, torch.full_like(blocks, unknown), plan, stage)
            each = F.cross_entropy(logits.flatten(0, 2), blocks.flatten(), reduction="none")
            total, count = total + each.view(len(blocks), -1).sum(1), count + blocks[0].numel()
        losses.append((total / count).numpy())
    if not losses:
        raise ValueError("no sample to score")
    return [float(loss) for loss in np.concatenate(losses)]


@torch.no_grad()
def plan_codes(model: Generator, grids: Grids) -> Tensor | None:
    """The plans of true images, int64 [n, plan_tokens]; None for a shape without a plan."""
    return None if model.plan is None else model.plan.codes(model.plan.encode(grids.coarse, grids.details))


@torch.no_grad()
def heldout_next_token_losses(model: Generator, grids: Grids) -> list[float]:
    """Cross-entropy in nats per sketch token of each sample, each token given the true ones before it."""
    losses: list[Tensor] = []
    for start in range(0, len(grids.coarse), _BATCH):
        text, coarse = grids.text_ids[start : start + _BATCH], grids.coarse[start : start + _BATCH]
        logits = model.train_next(text, coarse).flatten(0, 1)
        losses.append(F.cross_entropy(logits, coarse.flatten(), reduction="none").view_as(coarse).mean(1))
    return torch.cat(losses).tolist()

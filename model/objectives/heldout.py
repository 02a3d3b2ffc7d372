"""The held-out loss under fixed masks: one comparable number per sample for data that no judge can score."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.objectives.masked import Grids, draw_mask
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
    """Cross-entropy in nats per token of each sample, coarse and fine averaged by their token counts.

    Every sketch is scored under `draws` of the `fixed_masks`; the details are scored from a blank grid, as decoding asks
    for them. Across tokenizers the numbers mean nothing.
    """
    config, unknown = model.config, model.config.visual_vocabulary
    losses: list[np.ndarray] = []
    samples, tokens = grids.coarse.shape
    for batch, masks in enumerate(fixed_masks(samples, tokens, draws)):
        part = slice(batch * _BATCH, (batch + 1) * _BATCH)
        text, coarse, fine = grids.text_ids[part], grids.coarse[part], grids.fine[part]
        past = model.prefill(text)
        coarse_mean = torch.zeros(len(coarse))
        for hidden in masks:
            logits = model.coarse_logits(past, torch.where(hidden, unknown, coarse))
            each = F.cross_entropy(logits.flatten(0, 1), coarse.flatten(), reduction="none").view_as(coarse)
            coarse_mean += (each * hidden).sum(1) / hidden.sum(1) / draws
        logits = model.fine_logits(past, coarse, torch.full_like(fine, unknown))
        each = F.cross_entropy(logits.flatten(0, 2), fine.flatten(), reduction="none").view(len(fine), -1)
        weight = 1 / (1 + fine.shape[-1])
        losses.append((weight * coarse_mean + (1 - weight) * each.mean(1)).numpy())
    if not losses:
        raise ValueError(f"no sample to score; the model has {config.num_hidden_layers} layers")
    return [float(loss) for loss in np.concatenate(losses)]

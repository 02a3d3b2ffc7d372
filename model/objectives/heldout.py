"""The held-out loss under fixed masks: one comparable number per sample for data that no judge can score."""

import numpy as np
import torch
import torch.nn.functional as F

from model.objectives.masked import Grids, draw_mask
from model.transformer.model import Generator

_MASK_SEED = 20_240_601
_BATCH = 64


@torch.no_grad()
def heldout_losses(model: Generator, grids: Grids, draws: int = 2) -> list[float]:
    """Cross-entropy in nats per token of each sample, coarse and fine averaged by their token counts.

    The masks come from a constant seed and a sample's position, so two models that share a tokenizer answer the
    same questions; across tokenizers the numbers mean nothing. Every sketch is scored under `draws` masks; the
    details are scored from a blank grid, as decoding asks for them.
    """
    config, unknown = model.config, model.config.visual_vocabulary
    losses: list[np.ndarray] = []
    for start in range(0, len(grids.coarse), _BATCH):
        part = slice(start, start + _BATCH)
        text, coarse, fine = grids.text_ids[part], grids.coarse[part], grids.fine[part]
        past = model.prefill(text)
        generator = torch.Generator().manual_seed(_MASK_SEED + start)
        coarse_mean = torch.zeros(len(coarse))
        for _ in range(draws):
            hidden = draw_mask(coarse.shape[0], coarse.shape[1], 0.5, generator)
            hidden[:, 0] |= ~hidden.any(1)  # a row without a hidden token has no loss
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

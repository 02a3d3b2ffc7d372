"""Next-token prediction: each cell of the sketch from the prompt and the cells before it, in raster order.

Some of the cells before it are replaced by random ones, as in `masked`: decoding feeds the model its own mistakes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from model.data.grids import Grids
from model.objectives.masked import corrupt, fine_losses
from model.objectives.settings import MaskingSettings
from model.transformer.model import Generator


def next_token_loss(model: Generator, grids: Grids, settings: MaskingSettings, generator: torch.Generator) -> Tensor:
    """Mean cross-entropy (nats) of the sketch's tokens, each given the true ones before it but `corruption` of them."""
    visible = corrupt(grids.coarse, settings.corruption, model.config.visual_vocabulary, generator)
    logits = model.train_next(grids.text_ids, visible).flatten(0, 1).float()
    return F.cross_entropy(logits, grids.coarse.flatten(), label_smoothing=settings.label_smoothing)


def next_token_losses(
    model: Generator, grids: Grids, settings: MaskingSettings, generator: torch.Generator, fine_rows: int
) -> dict[str, Tensor]:
    """`coarse_loss`: the `next_token_loss`; the `fine_losses` of the first `fine_rows` images, without a plan."""
    losses = {"coarse_loss": next_token_loss(model, grids, settings, generator)}
    if fine_rows:
        losses |= fine_losses(model, grids, settings, generator, fine_rows)
    return losses

"""Training the visual tokenizer on several scales of the same images at once."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import TrainingError
from model.tokenizers.settings import VisualTokenizerConfig, VisualTrainingSettings
from model.tokenizers.visual import VisualTokenizer

_SCALES = ((1, 1.0), (2, 1.2), (4, 2.4))
"""Downscaling factor, and the images of that scale for each image of the full size."""


def train_visual_tokenizer(
    images: Tensor,
    config: VisualTokenizerConfig,
    settings: VisualTrainingSettings,
    on_step: Callable[[int, float], None] | None = None,
) -> VisualTokenizer:
    """Fit a tokenizer to uint8 images [count, 3, height, width].

    `on_step(step, loss)` is called after each step. Raises `TrainingError` on a loss that is not finite.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        return _train(images, config, settings, on_step)
    finally:
        torch.set_num_threads(threads)


def to_float(images: Tensor) -> Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return images.float() / 127.5 - 1


def _train(
    images: Tensor,
    config: VisualTokenizerConfig,
    settings: VisualTrainingSettings,
    on_step: Callable[[int, float], None] | None,
) -> VisualTokenizer:
    random = torch.Generator().manual_seed(settings.seed)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tokenizer = VisualTokenizer(config)
    optimizer = torch.optim.AdamW(
        tokenizer.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, max(settings.steps, 2), pct_start=0.1
    )
    scales = _usable_scales(images, config)
    for step in range(settings.steps):
        loss = images.new_zeros((), dtype=torch.float32)
        for factor, share in scales:
            batch = _draw(images, factor, round(settings.batch_size * share), random)
            loss = loss + _reconstruction_loss(tokenizer, batch, settings.absolute_loss_weight)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tokenizer.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the visual tokenizer's loss is {loss.item()} at step {step}",
                fix="lower tokenizer.visual_training.learning_rate",
            )
        if on_step:
            on_step(step, loss.item())
    return tokenizer.eval()


def _usable_scales(images: Tensor, config: VisualTokenizerConfig) -> list[tuple[int, float]]:
    sides = images.shape[-2:]
    return [
        (factor, share) for factor, share in _SCALES if all(side % (factor * config.patch_size) == 0 for side in sides)
    ]


def _draw(images: Tensor, factor: int, count: int, random: torch.Generator) -> Tensor:
    chosen = to_float(images[torch.randint(len(images), (count,), generator=random)])
    return F.avg_pool2d(chosen, factor) if factor > 1 else chosen


def _reconstruction_loss(tokenizer: VisualTokenizer, batch: Tensor, absolute_weight: float) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=_has_bf16()):
        reconstruction = tokenizer(batch)
    error = reconstruction.float() - batch
    return error.pow(2).mean() + absolute_weight * error.abs().mean()


def _has_bf16() -> bool:
    """bf16 convolutions are faster only where the CPU has instructions for them."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()

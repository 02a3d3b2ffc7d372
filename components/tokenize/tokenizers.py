"""Getting the tokenizers of a run: the parent's, byte for byte, or the first of a new lineage."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from common.errors import DataError
from common.files import atomic_path
from common.progress import report
from components.tokenize.settings import TokenizerSettings
from components.tokenize.table import captions_of, random_images
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.metrics import psnr, ssim
from model.tokenizers.text import TextTokenizer
from model.tokenizers.training import to_float, train_visual_tokenizer
from model.tokenizers.visual import VisualTokenizer

_BATCH_IMAGES = 128


def reuse_tokenizers(parent: Path, tokenizers: Path) -> TokenizerBundle:
    """Copy the parent's tokenizers. Raises `DigestMismatchError` where they are not whole."""
    with atomic_path(tokenizers) as temporary:
        shutil.copytree(parent, temporary)
        TokenizerBundle.load(temporary)
    return TokenizerBundle.load(tokenizers)


def train_tokenizers(settings: TokenizerSettings, table: Path, tokenizers: Path) -> TokenizerBundle:
    """Train both tokenizers on the table and save them. Raises `DataError` where it has no image with a caption."""
    images = random_images(table, settings.image_size, settings.training_images, settings.visual_training.seed)
    if not len(images):
        raise DataError("no image with a caption", where=str(table))
    steps = settings.visual_training.steps

    def show(step: int, loss: float) -> None:
        report(step + 1, steps, f"visual tokenizer: loss {loss:.4f}")

    text = TextTokenizer.train(captions_of(table), settings.text_vocabulary)
    visual = train_visual_tokenizer(torch.from_numpy(images), settings.visual, settings.visual_training, show)
    save_tokenizers(tokenizers, text, visual)
    return TokenizerBundle.load(tokenizers)


@torch.no_grad()
def reconstruction_quality(visual: VisualTokenizer, batches: Iterable[np.ndarray]) -> dict[str, float]:
    """Mean SSIM and PSNR (dB) of reconstructed images; batches are uint8 [count, 3, height, width]."""
    similarities, ratios = [], []
    for batch in batches:
        for part in torch.from_numpy(batch).split(_BATCH_IMAGES):
            original = to_float(part)
            copy = visual.decode(visual.encode(original))
            similarities.append(ssim(copy, original))
            ratios.append(psnr(copy, original))
    return {"ssim": float(torch.cat(similarities).mean()), "psnr_db": float(torch.cat(ratios).mean())}

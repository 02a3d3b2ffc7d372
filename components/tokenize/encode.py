"""Writing one split's shards: images to coarse and fine codes, captions to prompts."""

from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import DataError
from common.progress import report
from components.samples import count_samples
from components.tokenize.settings import TokenizerSettings
from components.tokenize.table import CaptionedImages, captioned_images
from model.data.shards import RecordLayout, ShardWriter
from model.tokenizers.bundle import TokenizerBundle
from model.tokenizers.text import PromptTooLongError
from model.tokenizers.training import to_float

SKETCH_FACTOR = 2
"""The sketch is the image at half its size."""


def record_layout(settings: TokenizerSettings, bundle: TokenizerBundle) -> RecordLayout:
    """Tokens of a record. Raises `DataError` where the image cannot be cut into whole cells of the sketch."""
    cell = SKETCH_FACTOR * bundle.visual.config.patch_size
    if settings.image_size % cell:
        raise DataError(f"tokenizer.image_size {settings.image_size} is not a multiple of {cell}")
    side = settings.image_size // cell
    return RecordLayout(
        text_length=settings.text_length, coarse_grid=(side, side), fine_tokens=(side * SKETCH_FACTOR) ** 2
    )


def write_split(
    settings: TokenizerSettings, bundle: TokenizerBundle, table: Path, shards: Path, split: str
) -> tuple[int, Counter[str]]:
    """Tokenize a table into `<split>.bin/.idx`; returns the number of records and the dropped rows by reason.

    Raises `DataError` with those reasons where no row is left.
    """
    rows = count_samples(table)
    dropped: Counter[str] = Counter()
    layout = record_layout(settings, bundle)
    with ShardWriter(shards, split, layout) as writer:
        for samples in captioned_images(table, settings.image_size, dropped):
            _write(writer, bundle, samples, dropped)
            report(writer.count + dropped.total(), rows, f"{split}: {writer.count} samples")
        if writer.count == 0:
            reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "no rows"
            raise DataError(f"the split '{split}' is empty: {reasons}", where=str(table))
    return writer.count, dropped


def _write(writer: ShardWriter, bundle: TokenizerBundle, samples: CaptionedImages, dropped: Counter[str]) -> None:
    kept, prompts = [], []
    for row, caption in enumerate(samples.captions):
        try:
            prompts.append(bundle.text.encode_prompt(caption, writer.layout.text_length))
        except PromptTooLongError:
            dropped["caption_too_long"] += 1
            continue
        kept.append(row)
    if kept:
        coarse, fine = encode_images(bundle, samples.images[kept])
        writer.add([samples.ids[row] for row in kept], np.array(prompts), coarse, fine)


def encode_images(bundle: TokenizerBundle, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 [n, 3, side, side] -> codes of the sketch [n, cells] and of the image [n, 4 * cells], raster order."""
    pixels = to_float(torch.from_numpy(images))
    coarse = bundle.visual.encode(F.avg_pool2d(pixels, SKETCH_FACTOR))
    return coarse.flatten(1).numpy(), bundle.visual.encode(pixels).flatten(1).numpy()

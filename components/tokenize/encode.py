"""Writing one split's shards: images to coarse and fine codes, captions to prompts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from common.errors import DataError
from common.progress import report
from components.samples import count_samples
from components.tokenize.dropped import DroppedRows
from components.tokenize.settings import TokenizerSettings
from components.tokenize.table import CaptionedImages, captioned_images
from model.data.shards import RecordLayout, ShardWriter
from model.tokenizers.bundle import TokenizerBundle
from model.tokenizers.text import PromptTooLongError
from model.tokenizers.training import to_float

TOO_LONG = "caption_too_long"
"""Why a row is left out whose caption has more tokens than `tokenizer.text_length` leaves room for."""


def record_layout(settings: TokenizerSettings, bundle: TokenizerBundle) -> RecordLayout:
    """Tokens of a record. Raises `DataError` where the image cannot be cut into whole cells of the sketch."""
    cell = bundle.visual.config.patch_size << settings.detail_stages
    if settings.image_size % cell:
        raise DataError(
            f"tokenizer.image_size {settings.image_size} is not a multiple of {cell}, the side of a cell of the sketch",
            fix="change it, or lower tokenizer.detail_stages",
        )
    side = settings.image_size // cell
    return RecordLayout(
        text_length=settings.text_length, coarse_grid=(side, side), detail_stages=settings.detail_stages
    )


def write_split(
    settings: TokenizerSettings, bundle: TokenizerBundle, table: Path, shards: Path, split: str, dropped: DroppedRows
) -> int:
    """Tokenize a table into `<split>.bin/.idx` and add what is left out to `dropped`; returns the number of records.

    Raises `DataError` with the reasons where no row is left.
    """
    rows, before = count_samples(table), len(dropped)

    def drop(identity: str, reason: str) -> None:
        dropped.add(split, identity, reason)

    layout = record_layout(settings, bundle)
    with ShardWriter(shards, split, layout) as writer:
        for samples in captioned_images(table, settings.image_size, drop):
            _write(writer, bundle, samples, drop)
            report(writer.count + len(dropped) - before, rows, f"{split}: {writer.count} samples")
        if writer.count == 0:
            reasons = dropped.reasons(split)
            raise DataError(
                f"the split '{split}' is empty: "
                + (", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "no rows"),
                where=str(table),
                fix="raise tokenizer.text_length: captions have more tokens than that" if TOO_LONG in reasons else None,
            )
    return writer.count


def _write(
    writer: ShardWriter, bundle: TokenizerBundle, samples: CaptionedImages, drop: Callable[[str, str], None]
) -> None:
    kept, prompts = [], []
    for row, caption in enumerate(samples.captions):
        try:
            prompts.append(bundle.text.encode_prompt(caption, writer.layout.text_length))
        except PromptTooLongError:
            drop(samples.ids[row], TOO_LONG)
            continue
        kept.append(row)
    if kept:
        codes = encode_images(bundle, samples.images[kept], writer.layout.detail_stages)
        writer.add([samples.ids[row] for row in kept], np.array(prompts), codes)


def encode_images(bundle: TokenizerBundle, images: np.ndarray, detail_stages: int) -> list[np.ndarray]:
    """uint8 [n, 3, side, side] -> codes of each grid in raster order, [n, tokens]: of the sketch, which is the image at
    half its size for every stage of details, then at twice the size each, up to the image's own."""
    pixels = to_float(torch.from_numpy(images))
    scaled = (F.avg_pool2d(pixels, 1 << stage) for stage in range(detail_stages, -1, -1))
    return [bundle.visual.encode(image).flatten(1).numpy() for image in scaled]

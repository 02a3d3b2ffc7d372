"""Reading a sample table a batch at a time, however large it is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.images import MOST_PIXELS, UnreadableImageError, load, square
from components.samples import count_samples, iterate_samples

_COLUMNS = ("id", "modality", "text", "payload")
_BATCH_ROWS = 512


@dataclass(frozen=True)
class CaptionedImages:
    """Some rows of a table: uint8 images [count, 3, side, side] and their captions."""

    ids: list[str]
    captions: list[str]
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def captioned_images(table: Path, side: int, drop: Callable[[str, str], None]) -> Iterator[CaptionedImages]:
    """The images with captions, in the table's order; every other row is told to `drop` by its id and reason."""
    for batch in iterate_samples(table, _COLUMNS, _BATCH_ROWS):
        ids, captions, images = [], [], []
        for row in batch.to_pylist():
            pixels = _pixels(row, side)
            if isinstance(pixels, str):
                drop(row["id"], pixels)
                continue
            ids.append(row["id"])
            captions.append(row["text"])
            images.append(pixels)
        if ids:
            yield CaptionedImages(ids, captions, np.stack(images))


def random_images(table: Path, side: int, count: int, seed: int) -> np.ndarray:
    """Up to `count` images drawn without replacement from the whole table: uint8 [n, 3, side, side].

    The rows are chosen before anything is decoded, so that memory holds the chosen images alone.
    """
    rows = count_samples(table)
    chosen = np.zeros(rows, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(rows)[:count]] = True
    images, start = [], 0
    for batch in iterate_samples(table, _COLUMNS, _BATCH_ROWS):
        wanted = np.flatnonzero(chosen[start : start + batch.num_rows])
        start += batch.num_rows
        decoded = (_pixels(row, side) for row in batch.take(wanted).to_pylist())
        images.extend(pixels for pixels in decoded if not isinstance(pixels, str))
    return np.stack(images) if images else np.empty((0, 3, side, side), np.uint8)


def captions_of(table: Path) -> Iterator[str]:
    """Every caption of an image, in the table's order."""
    for batch in iterate_samples(table, ("modality", "text"), _BATCH_ROWS):
        yield from (row["text"] for row in batch.to_pylist() if row["modality"] == "image" and row["text"])


def _pixels(row: dict[str, Any], side: int) -> np.ndarray | str:
    """uint8 [3, side, side], or the reason why a row cannot be used."""
    if row["modality"] != "image":
        return "not_an_image"
    if not row["text"] or not row["text"].strip():
        return "no_caption"
    if not row["payload"]:
        return "no_pixels"
    try:
        return square(load(row["payload"], MOST_PIXELS).pixels, side)
    except UnreadableImageError:
        return "undecodable"

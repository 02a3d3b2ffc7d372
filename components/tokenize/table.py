"""Reading a sample table a batch at a time, however large it is."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError, DigestMismatchError
from common.files import read_json, sha256_file
from components.tokenize.images import decode_square

TABLE_FILE = "samples.parquet"
_COLUMNS = ["id", "modality", "text", "payload"]
_BATCH_ROWS = 512


@dataclass(frozen=True)
class CaptionedImages:
    """Some rows of a table: uint8 images [count, 3, side, side] and their captions."""

    ids: list[str]
    captions: list[str]
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


def check_digest(table: Path, validation: Path) -> str:
    """The table's sha256. Raises `DigestMismatchError` where it is not the one that was validated."""
    expected = read_json(validation / "result.json")["table_sha256"]
    found = sha256_file(table / TABLE_FILE)
    if found != expected:
        raise DigestMismatchError(
            f"the data changed after it was validated: sha256 {found[:12]}…, validated was {expected[:12]}…",
            where=str(table / TABLE_FILE),
            fix="validate it again",
        )
    return found


def captioned_images(table: Path, side: int, dropped: Counter[str]) -> Iterator[CaptionedImages]:
    """The images with captions, in the table's order; every other row is counted in `dropped` by its reason."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table / TABLE_FILE) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=_COLUMNS):
            ids, captions, images = [], [], []
            for row in batch.to_pylist():
                if reason := _unusable(row):
                    dropped[reason] += 1
                    continue
                try:
                    images.append(decode_square(row["payload"], side))
                except DataError:
                    dropped["undecodable"] += 1
                    continue
                ids.append(row["id"])
                captions.append(row["text"])
            if ids:
                yield CaptionedImages(ids, captions, np.stack(images))


def random_images(table: Path, side: int, count: int, seed: int) -> np.ndarray:
    """Up to `count` images drawn without replacement from the whole table: uint8 [n, 3, side, side].

    The rows are chosen before anything is decoded, so that memory holds the chosen images alone.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(table / TABLE_FILE) as file:
        rows = file.metadata.num_rows
        chosen = np.zeros(rows, dtype=bool)
        chosen[np.random.default_rng(seed).permutation(rows)[:count]] = True
        images, start = [], 0
        for batch in file.iter_batches(_BATCH_ROWS, columns=_COLUMNS):
            wanted = np.flatnonzero(chosen[start : start + batch.num_rows])
            start += batch.num_rows
            for row in batch.take(wanted).to_pylist():
                if _unusable(row):
                    continue
                try:
                    images.append(decode_square(row["payload"], side))
                except DataError:
                    continue
    return np.stack(images) if images else np.empty((0, 3, side, side), np.uint8)


def captions_of(table: Path) -> Iterator[str]:
    """Every caption of an image, in the table's order."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table / TABLE_FILE) as file:
        for batch in file.iter_batches(_BATCH_ROWS, columns=["modality", "text"]):
            yield from (row["text"] for row in batch.to_pylist() if row["modality"] == "image" and row["text"])


def _unusable(row: dict) -> str | None:
    if row["modality"] != "image":
        return "not_an_image"
    if not row["text"] or not row["text"].strip():
        return "no_caption"
    return None if row["payload"] else "no_pixels"

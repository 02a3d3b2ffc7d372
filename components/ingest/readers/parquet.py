"""Parquet files with image bytes and captions in columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from components.ingest.readers.parts import Parts, Rejected
from components.ingest.settings import LimitSettings

IMAGE_COLUMNS = ("image", "payload", "image_bytes", "bytes", "jpg", "jpeg", "png", "webp")
CAPTION_COLUMNS = ("caption", "text", "prompt", "txt")
METADATA_COLUMN = "json"
_BATCH_ROWS = 32


def read_parquet(path: Path, source: str, limits: LimitSettings) -> Iterator[Parts | Rejected]:
    """Stream the rows of one file. The image column is binary, or a struct with `bytes` as data sets of images have it."""
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            image = next((name for name in IMAGE_COLUMNS if name in names), None)
            caption = next((name for name in CAPTION_COLUMNS if name in names), None)
            if image is None or caption is None:
                missing = (
                    f"an image column ({', '.join(IMAGE_COLUMNS)}) and a caption column ({', '.join(CAPTION_COLUMNS)})"
                )
                yield Rejected(source, "", "columns_missing", f"needs {missing}; has {', '.join(names)}")
                return
            optional = [name for name in (METADATA_COLUMN, "labels", "license") if name in names]
            row = 0
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=[image, caption, *optional]):
                for index in range(batch.num_rows):
                    record = batch.slice(index, 1).to_pylist()[0]  # one row at a time becomes Python's bytes
                    yield _sample(source, f"row-{row:08d}", record, image, caption, limits)
                    row += 1
    except (pa.ArrowException, OSError) as error:
        yield Rejected(source, "", "archive_damaged", f"not a readable Parquet file: {error}")


def _sample(
    source: str, member: str, record: dict[str, Any], image: str, caption: str, limits: LimitSettings
) -> Parts | Rejected:
    value = record[image]
    payload = value.get("bytes") if isinstance(value, dict) else value
    if payload is None:
        return Rejected(source, member, "image_missing", f"column {image} is empty")
    if not isinstance(payload, bytes):
        return Rejected(source, member, "not_an_image", f"column {image} holds {type(payload).__name__}, not bytes")
    if len(payload) > limits.max_member_bytes:
        return Rejected(
            source, member, "member_too_large", f"{len(payload)} bytes, more than {limits.max_member_bytes}"
        )
    contents = {"image": payload}
    for name, part in ((caption, "txt"), (METADATA_COLUMN, "json"), ("labels", "labels"), ("license", "license")):
        text = record.get(name)
        if text is None:
            continue
        content = text if isinstance(text, bytes) else str(text).encode()
        if len(content) > limits.max_text_bytes:
            return Rejected(
                source, member, "member_too_large", f"{name}: {len(content)} bytes, more than {limits.max_text_bytes}"
            )
        contents[part] = content
    return Parts(source, member, contents)

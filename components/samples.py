"""The Sample contract: one row for each piece of data, in Parquet, and the tables of what was refused and dropped."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import pyarrow as pa
import pyarrow.parquet as pq

from common.errors import DataError
from common.files import sha256_bytes, sha256_file

SAMPLES_FILE = "samples.parquet"
QUARANTINE_FILE = "quarantine.parquet"
DROPPED_FILE = "dropped.parquet"
MODALITIES = ("text", "image", "video", "audio")

SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),  # sha256 of source and member
        pa.field("content_sha256", pa.string(), nullable=False),  # of `payload`, or of the text where there is none
        pa.field("document_id", pa.string(), nullable=False),  # rows of one interleaved document share it
        pa.field("position", pa.int32(), nullable=False),  # within the document
        pa.field("modality", pa.string(), nullable=False),  # one of MODALITIES
        pa.field("text", pa.string()),  # the caption of an image
        pa.field("payload", pa.binary()),  # encoded bytes, as they came
        pa.field("mime", pa.string()),
        pa.field("width", pa.int32()),  # decoded, after EXIF rotation
        pa.field("height", pa.int32()),
        pa.field("frames", pa.int32()),
        pa.field("duration_s", pa.float32()),
        pa.field("sample_rate", pa.int32()),
        pa.field("source", pa.string(), nullable=False),  # file within the data, and member: `a.tar#000123`
        pa.field("license", pa.string()),
        pa.field("labels", pa.string()),  # JSON
    ]
)
METADATA_COLUMNS = tuple(name for name in SAMPLE_SCHEMA.names if name != "payload")

QUARANTINE_SCHEMA = pa.schema(
    [pa.field(name, pa.string(), nullable=False) for name in ("source", "member", "reason", "detail")]
)
DROPPED_SCHEMA = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("id", "source", "tier", "reason")])

MOST_POSITION = 2**31 - 1
"""The largest `position` that the table's int32 holds."""
_ROWS_PER_GROUP = 512
_BYTES_PER_GROUP = 32 << 20


def sample_id(source: str, member: str) -> str:
    """The identity of a sample: where it came from. `source` is relative, so that moving the data changes nothing."""
    return sha256_bytes(f"{source}\0{member}".encode())


class DocumentPlace(NamedTuple):
    """Where a sample stands in an interleaved document."""

    document_id: str
    position: int


def image_sample(
    *,
    source: str,
    member: str,
    payload: bytes,
    caption: str,
    mime: str,
    width: int,
    height: int,
    license: str | None = None,
    labels: Mapping[str, Any] | None = None,
    place: DocumentPlace | None = None,
) -> dict[str, Any]:
    """One captioned image as a row of `SAMPLE_SCHEMA`: at its place in a document, or without one a document of its own."""
    identity = sample_id(source, member)
    document, position = place or DocumentPlace(identity, 0)
    return {
        "id": identity,
        "content_sha256": hashlib.sha256(payload).hexdigest(),
        "document_id": document,
        "position": position,
        "modality": "image",
        "text": caption,
        "payload": payload,
        "mime": mime,
        "width": width,
        "height": height,
        "frames": 1,
        "duration_s": None,
        "sample_rate": None,
        "source": f"{source}#{member}" if member else source,
        "license": license,
        "labels": None if labels is None else json.dumps(labels, sort_keys=True, allow_nan=False),
    }


class TableWriter:
    """Stream rows into one Parquet file; memory holds one row group, by count and by bytes of payload."""

    def __init__(self, path: Path, schema: pa.Schema = SAMPLE_SCHEMA):
        self.rows = 0
        self._schema = schema
        self._buffer: list[dict[str, Any]] = []
        self._buffered_bytes = 0
        small = [name for name in schema.names if name != "payload"]
        options: dict[str, Any] = {"use_dictionary": small, "write_statistics": small}
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", **options)

    def write(self, row: dict[str, Any]) -> None:
        self._buffer.append(row)
        self._buffered_bytes += len(row.get("payload") or b"")
        self.rows += 1
        if len(self._buffer) >= _ROWS_PER_GROUP or self._buffered_bytes >= _BYTES_PER_GROUP:
            self._flush()

    def write_all(self, rows: Iterable[dict[str, Any]]) -> None:
        for row in rows:
            self.write(row)

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._buffer:
            self._writer.write_table(pa.Table.from_pylist(self._buffer, schema=self._schema))
            self._buffer, self._buffered_bytes = [], 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._writer.close()


def samples_file(table: Path) -> Path:
    """The table in an artifact folder, whatever its columns. Raises `DataError` where there is none."""
    path = table / SAMPLES_FILE
    if not path.is_file():
        raise DataError(f"no {SAMPLES_FILE} here", where=str(table), fix="run the step that writes it")
    return path


def table_schema(table: Path) -> pa.Schema:
    """The columns that an artifact folder's table has. Raises `DataError` where it is missing or no table."""
    path = samples_file(table)
    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise DataError(f"not a Parquet table: {error}", where=str(path)) from None


def samples_path(table: Path) -> Path:
    """The Sample table of an artifact folder. Raises `DataError` where it is missing or not of this contract."""
    path = samples_file(table)
    missing = set(SAMPLE_SCHEMA.names) - set(table_schema(table).names)
    if missing:
        raise DataError(f"columns of the Sample contract are missing: {', '.join(sorted(missing))}", where=str(path))
    return path


def read_samples(table: Path, columns: Iterable[str] | None = None) -> pa.Table:
    """The table of an artifact folder in memory, by default without the payload."""
    return pq.read_table(samples_path(table), columns=list(columns or METADATA_COLUMNS))


def iterate_samples(
    table: Path, columns: Iterable[str] | None = None, batch_size: int = 256
) -> Iterator[pa.RecordBatch]:
    """Batches of an artifact folder's table in their order, by default with every column."""
    chosen = list(columns) if columns is not None else SAMPLE_SCHEMA.names
    with pq.ParquetFile(samples_path(table)) as file:
        yield from file.iter_batches(batch_size=batch_size, columns=chosen)


def count_samples(table: Path) -> int:
    return pq.read_metadata(samples_path(table)).num_rows


def table_sha256(table: Path) -> str:
    """The digest of an artifact folder's table: any changed byte changes it."""
    return sha256_file(samples_path(table))


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> None:
    """Write a small table at `path`."""
    with TableWriter(path, schema) as writer:
        writer.write_all(rows)

"""What Great Expectations looks at: columns that say everything about a row but its payload."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from components.samples import METADATA_COLUMNS, SAMPLE_SCHEMA, samples_file, table_schema

if TYPE_CHECKING:
    import pandas as pd

_BATCH_ROWS = 256


def schema_table(table: Path) -> "pd.DataFrame":
    """One row for each column that the contract or the table has: `column`, `type` and `contract_type`."""
    import pandas as pd

    actual = {field.name: str(field.type) for field in table_schema(table)}
    contract = {field.name: str(field.type) for field in SAMPLE_SCHEMA}
    names = [*contract, *(name for name in actual if name not in contract)]
    rows = [(name, actual.get(name, "absent"), contract.get(name, "not in the contract")) for name in names]
    return pd.DataFrame(rows, columns=["column", "type", "contract_type"])


def metadata_table(table: Path) -> "pd.DataFrame":
    """The rows without their payload, of which size and digest stand for it: `payload_bytes`, `payload_sha256`.

    Both are null where a row has no payload. The payload is streamed; memory holds one batch of it.
    """
    sizes: list[int | None] = []
    digests: list[str | None] = []
    parts: list[pa.RecordBatch] = []
    with pq.ParquetFile(samples_file(table)) as file:
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=SAMPLE_SCHEMA.names):
            for payload in batch["payload"].to_pylist():
                sizes.append(None if payload is None else len(payload))
                digests.append(None if payload is None else hashlib.sha256(payload).hexdigest())
            parts.append(batch.select(list(METADATA_COLUMNS)))
    schema = pa.schema([SAMPLE_SCHEMA.field(name).with_nullable(True) for name in METADATA_COLUMNS])
    frame = pa.Table.from_batches([part.cast(schema) for part in parts], schema=schema).to_pandas()
    return frame.assign(payload_bytes=sizes, payload_sha256=digests)

"""Rows that tokenize leaves out, each with its reason."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet

FILE_NAME = "dropped.parquet"
_SCHEMA = pa.schema([("id", pa.string()), ("split", pa.string()), ("reason", pa.string())])


class DroppedRows:
    """Collects them over both splits."""

    def __init__(self) -> None:
        self._rows: list[dict[str, str]] = []

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, split: str, identity: str, reason: str) -> None:
        self._rows.append({"id": identity, "split": split, "reason": reason})

    def reasons(self, split: str) -> dict[str, int]:
        """How many rows of a split were left out for each reason."""
        return dict(sorted(Counter(row["reason"] for row in self._rows if row["split"] == split).items()))

    def write(self, folder: Path) -> None:
        """Write `folder/dropped.parquet`: `id`, `split`, `reason`."""
        parquet.write_table(pa.Table.from_pylist(self._rows, schema=_SCHEMA), folder / FILE_NAME)

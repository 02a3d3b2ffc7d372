"""Token shards: memory-mapped records of fixed size, so that any row is one seek away.

`<split>.bin` holds uint16 records (prompt ids, then the codes of each grid in raster order, the sketch's first), `<split>.idx`
the 32-byte id of each record's sample, `shards.json` the layout, the counts and where it all came from. The
order of training is computed, not stored: a resume needs one integer, and the number of ranks may change.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from common.errors import DataError, DigestMismatchError
from common.files import atomic_path, read_json, sha256_file, write_json

MANIFEST_FILE = "shards.json"
_SUFFIXES = (".bin", ".idx")
_SAMPLE_ID_BYTES = 32
_LARGEST_ID = np.iinfo(np.uint16).max


@dataclass(frozen=True, kw_only=True)
class RecordLayout:
    """Tokens of one record; `coarse_grid` is the rows and columns of the sketch, which each detail stage doubles."""

    text_length: int
    coarse_grid: tuple[int, int]
    detail_stages: int = 1

    @property
    def coarse_tokens(self) -> int:
        return self.coarse_grid[0] * self.coarse_grid[1]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of every grid, from the sketch to the image."""
        rows, columns = self.coarse_grid
        return tuple((rows << stage, columns << stage) for stage in range(self.detail_stages + 1))

    @property
    def tokens(self) -> int:
        return self.text_length + sum(rows * columns for rows, columns in self.grids)


class Records(NamedTuple):
    """Some records, int64."""

    text_ids: np.ndarray
    """[n, text_length]."""
    codes: tuple[np.ndarray, ...]
    """[n, tokens] of each grid in raster order, the sketch's first."""


class ShardWriter:
    """Writes the records of one split; the files appear under their names when the `with` block ends well."""

    def __init__(self, folder: Path, split: str, layout: RecordLayout):
        self.layout, self.count = layout, 0
        self._folder, self._split, self._open = folder, split, ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._records, self._ids = [
                stack.enter_context(
                    stack.enter_context(atomic_path(self._folder / f"{self._split}{suffix}")).open("wb")
                )
                for suffix in _SUFFIXES
            ]
            self._open = stack.pop_all()
        return self

    def add(self, sample_ids: Sequence[str], text_ids: np.ndarray, codes: Sequence[np.ndarray]) -> None:
        """Append n records: hexadecimal sha256 ids, integers [n, text_length], and [n, tokens] of each grid.

        Raises `ValueError` where the shapes do not fit the layout or an id does not fit in 16 bits.
        """
        records = np.concatenate([text_ids, *codes], axis=1)
        if records.shape != (len(sample_ids), self.layout.tokens):
            raise ValueError(f"records {records.shape} do not fit {len(sample_ids)} samples of {self.layout}")
        if records.size and not 0 <= records.min() <= records.max() <= _LARGEST_ID:
            raise ValueError(f"ids {records.min()}..{records.max()} do not fit in 16 bits")
        ids = b"".join(bytes.fromhex(sample_id) for sample_id in sample_ids)
        if len(ids) != _SAMPLE_ID_BYTES * len(sample_ids):
            raise ValueError(f"a sample id is not a sha256: {sample_ids}")
        self._records.write(records.astype("<u2").tobytes())
        self._ids.write(ids)
        self.count += len(sample_ids)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.__exit__(kind, error, trace)


def write_manifest(folder: Path, layout: RecordLayout, counts: Mapping[str, int], **origin: Any) -> None:
    """Write `shards.json` last: shards without it are not complete."""
    files = {path.name: sha256_file(path) for path in sorted(folder.iterdir()) if path.suffix in _SUFFIXES}
    write_json(folder / MANIFEST_FILE, {"layout": asdict(layout), "counts": dict(counts), "sha256": files, **origin})


def verify_shards(folder: Path) -> str:
    """Hash every file that `shards.json` names; the sha256 of `shards.json` itself, which so stands for all of them.

    Raises `DataError` where there are no shards, `DigestMismatchError` naming a file that is not the one written.
    """
    manifest = folder / MANIFEST_FILE
    if not manifest.is_file():
        raise DataError(f"no {MANIFEST_FILE} here", where=str(folder), fix="run the tokenize step again")
    content = read_json(manifest)
    written = {f"{split}{suffix}": None for split in content["counts"] for suffix in _SUFFIXES} | content["sha256"]
    for name, expected in sorted(written.items()):
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise DigestMismatchError(
                "changed since the tokens were written" if path.is_file() else "written, and gone since",
                where=str(path),
                fix="run the tokenize step again",
            )
    return sha256_file(manifest)


class Shards:
    """Reads one split. It trusts the files: `verify_shards` comes first."""

    def __init__(self, folder: Path, split: str):
        """Raises `DataError` where the split is missing, empty, or not as long as `shards.json` says."""
        path, self._split = folder / f"{split}.bin", split
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)
        layout = self.manifest["layout"]
        self.layout = RecordLayout(**layout | {"coarse_grid": tuple(layout["coarse_grid"])})
        self.count = int(self.manifest["counts"].get(split, 0))
        if self.count == 0:
            raise DataError(f"the split '{split}' is empty", where=str(folder))
        expected_bytes = self.count * self.layout.tokens * 2
        if not path.is_file() or path.stat().st_size != expected_bytes:
            raise DataError(f"not {expected_bytes} bytes long", where=str(path), fix="run the tokenize step again")
        self._records = np.memmap(path, dtype="<u2", mode="r", shape=(self.count, self.layout.tokens))
        self._ids_path = folder / f"{split}.idx"

    def __len__(self) -> int:
        return self.count

    @property
    def tokenizers_digest(self) -> str:
        """Digest of the tokenizers that made these tokens."""
        return self.manifest["tokenizers_digest"]

    def batch(self, rows: Sequence[int] | np.ndarray) -> Records:
        """The records of these rows."""
        records = self._records[np.asarray(rows, dtype=np.int64)].astype(np.int64)
        ends = np.cumsum([self.layout.text_length, *(height * width for height, width in self.layout.grids)])
        text_ids, *codes = np.split(records, ends[:-1], axis=1)
        return Records(text_ids, tuple(codes))

    @property
    def groups(self) -> list[int] | None:
        """The group of each record, records of one group being no news beside one another; `None` where nobody noted them."""
        return self.manifest.get("groups", {}).get(self._split)

    def sample_id(self, row: int) -> str:
        """The id of the sample that a record was made from."""
        with self._ids_path.open("rb") as handle:
            handle.seek(row * _SAMPLE_ID_BYTES)
            return handle.read(_SAMPLE_ID_BYTES).hex()


def sample_ids(folder: Path, split: str) -> list[str]:
    """Of all records of a split, in their order."""
    whole = (folder / f"{split}.idx").read_bytes()
    return [whole[start : start + _SAMPLE_ID_BYTES].hex() for start in range(0, len(whole), _SAMPLE_ID_BYTES)]


def epoch_order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which an epoch visits `count` records, int64: a pure function of its arguments."""
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)

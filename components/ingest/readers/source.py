"""Find the data below a path, whatever forms it is in, and stream its samples in one fixed order."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError, UsageError
from components.ingest.readers.folder import read_folder
from components.ingest.readers.parquet import read_parquet
from components.ingest.readers.parts import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, Parts, Rejected
from components.ingest.readers.webdataset import read_webdataset, refuse_unsafe_members
from components.ingest.settings import LimitSettings

ACCEPTED = (
    "WebDataset tars (.tar), Parquet files (.parquet), or images (.png, .jpg, .webp) with a .txt of the same name"
)


@dataclass(frozen=True)
class Source:
    """The files of a data set by form, each list sorted by its path below `root`."""

    root: Path
    tars: tuple[Path, ...]
    parquets: tuple[Path, ...]
    files: tuple[Path, ...]

    @property
    def shards(self) -> list[str]:
        """The names of the files that hold many samples each."""
        return [self.name(path) for path in (*self.tars, *self.parquets)]

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def refuse_unsafe_archives(self) -> None:
        """Raises `UnsafeArchiveError` before anything is written."""
        for path in self.tars:
            refuse_unsafe_members(path, self.name(path))

    def read(self, limits: LimitSettings) -> Iterator[Parts | Rejected]:
        for path in self.tars:
            yield from read_webdataset(path, self.name(path), limits)
        for path in self.parquets:
            yield from read_parquet(path, self.name(path), limits)
        yield from read_folder(self.root, list(self.files), limits)


def find_source(path: Path) -> Source:
    """Look for data at `path`, a file or a folder. Hidden files, and others than the accepted forms, are passed over.

    Raises `UsageError` where there is no such path, `DataError` where nothing there is of an accepted form.
    """
    if not path.exists():
        raise UsageError("no such file or folder", where=str(path), fix="give the path of your data")
    root = path if path.is_dir() else path.parent
    files = sorted(_walk(path) if path.is_dir() else [path], key=lambda file: file.relative_to(root).as_posix())
    source = Source(
        root=root,
        tars=_with_extension(files, {"tar"}),
        parquets=_with_extension(files, {"parquet"}),
        files=_with_extension(files, IMAGE_EXTENSIONS | TEXT_EXTENSIONS),
    )
    if not (source.tars or source.parquets or source.files):
        raise DataError("nothing here can be read", where=str(path), fix=f"give {ACCEPTED}")
    return source


def _walk(folder: Path) -> Iterator[Path]:
    for current, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(current, name) for name in names if not name.startswith("."))


def _with_extension(files: list[Path], extensions: frozenset[str] | set[str]) -> tuple[Path, ...]:
    return tuple(path for path in files if path.suffix.lower().removeprefix(".") in extensions)

"""WebDataset tars that come out byte for byte the same whenever they are written."""

import io
import tarfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

Members = tuple[tuple[str, bytes], ...]
"""The members of one sample: (extension, content)."""


def write_tars(folder: Path, prefix: str, samples: Iterable[Members], per_tar: int) -> list[Path]:
    """Write `<prefix>-000000.tar`, …; sample number 123 has the members `000123.<extension>`."""
    written: list[Path] = []
    numbered: Iterator[tuple[int, Members]] = enumerate(samples)
    while shard := list(islice(numbered, per_tar)):
        path = folder / f"{prefix}-{len(written):06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, members in shard:
                for extension, content in members:
                    tar.addfile(_header(f"{number:06d}.{extension}", len(content)), io.BytesIO(content))
        written.append(path)
    return written


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode, header.uid, header.gid = size, 0, 0o644, 0, 0
    return header

"""Files that are either whole or absent, and digests that name them.

Everything is written under a temporary name beside its final one, flushed, and renamed, so that no reader
ever sees half a file and a crash leaves nothing under a final name.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common.errors import DataError, DiskFullError

_CHUNK_BYTES = 1 << 20


@contextmanager
def atomic_path(final: Path) -> Iterator[Path]:
    """Yield a temporary path beside `final`; rename it there on success, remove it on any error.

    The body may make a file or a folder at the temporary path. An existing file is replaced; an existing
    folder is replaced too, after the new one is complete. Raises `DiskFullError` where the disk ran out.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.parent / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        yield temporary
        if temporary.is_dir() and final.is_dir():
            _replace_directory(temporary, final)
        else:
            _flush(temporary)
            temporary.replace(final)
    except OSError as error:
        remove(temporary)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "no space left on the disk", where=str(final), fix="free some space, run again"
            ) from error
        raise
    except BaseException:
        remove(temporary)
        raise


def _replace_directory(new: Path, old: Path) -> None:
    aside = old.parent / f".{old.name}.{uuid.uuid4().hex[:8]}.old"
    old.replace(aside)
    new.replace(old)
    shutil.rmtree(aside, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_file():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def remove(path: Path) -> None:
    """Remove a file or a folder if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    write_bytes(path, content.encode())


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON with sorted keys. NaN and infinity are refused (`ValueError`)."""
    write_text(path, json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(Path(path).read_text())


def read_json_object(path: Path, *, fix: str | None = None) -> dict[str, Any]:
    """The object that a JSON file of somebody else's holds. Raises `DataError` where there is none: the file is missing,
    broken, or holds something else; `fix` is what to do then."""
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise DataError(f"there is no {path.name}", where=str(path.parent), fix=fix) from None
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", where=str(path), fix=fix) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON ({error})", where=str(path), fix=fix) from None
    if not isinstance(content, dict):
        raise DataError(f"holds {type(content).__name__}, not a JSON object", where=str(path), fix=fix)
    return content


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as handle:
        while chunk := handle.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def files_under(folder: Path) -> list[Path]:
    """Every regular file below `folder`, sorted by its relative POSIX path."""
    return sorted((p for p in Path(folder).rglob("*") if p.is_file()), key=lambda p: p.relative_to(folder).as_posix())


def digest_folder(folder: Path) -> str:
    """One sha256 over the relative names and contents of every file below `folder`."""
    digest = hashlib.sha256()
    for path in files_under(folder):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def digest_json(content: Any) -> str:
    """sha256 of the canonical JSON form (sorted keys, no spaces)."""
    return sha256_bytes(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())

"""WebDataset tars: consecutive members with one key (`000123.png`, `000123.txt`, `000123.json`) are one sample."""

import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

from common.errors import UnsafeArchiveError
from components.ingest.readers.parts import IMAGE_EXTENSIONS, TEXT_EXTENSIONS, Parts, Rejected
from components.ingest.settings import LimitSettings

_DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError, MemoryError)


def refuse_unsafe_members(path: Path, source: str) -> None:
    """Look at every member's header, before anything is read or written.

    Raises `UnsafeArchiveError` for an absolute name, one with `..`, a link or a device. Damage is not its business.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for member in _members(tar):
                if danger := _danger(member):
                    raise UnsafeArchiveError(
                        f"member {member.name!r} {danger}; nothing was written",
                        where=source,
                        fix="do not trust this archive",
                    )
    except _DAMAGE:
        return


def read_webdataset(path: Path, source: str, limits: LimitSettings) -> Iterator[Parts | Rejected]:
    """Stream the samples of one tar. Memory holds one sample; a member over its limit is not read."""
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            keyed = ((split, member) for member in _members(tar) if member.isreg() and (split := _split(member.name)))
            for key, group in groupby(keyed, key=lambda item: item[0][0]):
                yield _sample(tar, source, key, [(split[1], member) for split, member in group], seen, limits)
                seen.add(key)
            if _ends_in_garbage(path, tar.offset):
                yield Rejected(
                    source, "", "archive_damaged", f"no valid member header at byte {tar.offset}; the rest is lost"
                )
    except _DAMAGE as error:
        yield Rejected(source, "", "archive_damaged", str(error))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    while (member := tar.next()) is not None:
        yield member
        tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header otherwise


def _danger(member: tarfile.TarInfo) -> str | None:
    name = PurePosixPath(member.name.replace("\\", "/"))
    if name.is_absolute() or (name.parts and name.parts[0].endswith(":")):
        return "is an absolute path"
    if ".." in name.parts:
        return "points outside its folder"
    if member.issym() or member.islnk():
        return f"is a link to {member.linkname!r}"
    if not (member.isreg() or member.isdir()):
        return "is a device or another special file"
    return None


def _split(name: str) -> tuple[str, str] | None:
    """The key and the extension of a member, or None for one that is no part of a sample."""
    path = PurePosixPath(name)
    stem, dot, extension = path.name.partition(".")
    extension = extension.lower()
    if not stem or not dot or extension not in IMAGE_EXTENSIONS | TEXT_EXTENSIONS:
        return None
    return (path.parent / stem).as_posix(), extension


def _sample(
    tar: tarfile.TarFile,
    source: str,
    key: str,
    members: list[tuple[str, tarfile.TarInfo]],
    seen: set[str],
    limits: LimitSettings,
) -> Parts | Rejected:
    if key in seen:
        return Rejected(source, key, "repeated_key", "an earlier sample of this archive has the same name")
    contents: dict[str, bytes] = {}
    for extension, member in members:
        limit = limits.max_text_bytes if extension in TEXT_EXTENSIONS else limits.max_member_bytes
        if member.size > limit:
            return Rejected(source, key, "member_too_large", f"{member.name}: {member.size} bytes, more than {limit}")
        if extension in contents:
            return Rejected(source, key, "repeated_key", f"{member.name} stands twice")
        handle = tar.extractfile(member)
        contents[extension] = handle.read() if handle else b""
    return Parts(source, key, contents)


def _ends_in_garbage(path: Path, offset: int) -> bool:
    """A tar ends in blocks of zeros, or with the file; tarfile is silent where it ends in anything else."""
    with path.open("rb") as handle:
        handle.seek(offset)
        block = handle.read(tarfile.BLOCKSIZE)
    return any(block)

"""How a check comes about: something is computed from files, and held against each record that names it."""

import binascii
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.errors import EmuflowError
from common.files import read_json
from pipelines.lineage.tree import Check

UNREADABLE = (EmuflowError, OSError, ValueError, KeyError, TypeError, binascii.Error)
"""What reading a file raises that is not what it was."""


def unchecked(name: str, why: str) -> Check:
    return Check(name, "unchecked", why)


def equal(name: str, found: str | None, witnesses: Mapping[str, str | None]) -> Check:
    """Hold `found` against every witness that says something; `witnesses` are named by where they stand."""
    said = {place: value for place, value in witnesses.items() if value is not None}
    if not said:
        return unchecked(name, f"nothing names it: {', '.join(witnesses)} is gone or does not say")
    for place, expected in said.items():
        if found != expected:
            return Check(name, "failed", f"not what {place} names", expected, found or "nothing")
    return Check(name, "ok", f"{(found or '')[:12]} is what {_words(list(said))} names")


def digest(name: str, path: Path, compute: Callable[[Path], str], witnesses: Mapping[str, str | None]) -> Check:
    """Compute the digest of what lies at `path`, if it is still there, and hold it against the witnesses."""
    if not path.exists():
        return unchecked(name, f"{path.name} is gone")
    try:
        found = compute(path)
    except UNREADABLE as error:
        return unreadable(name, error)
    return equal(name, found, witnesses)


def unreadable(name: str, error: BaseException) -> Check:
    """A file that is there, and not as it was written."""
    if isinstance(error, EmuflowError):
        detail = f"{error.where}: {error.what}" if error.where else error.what
    else:
        detail = f"cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
    return Check(name, "failed", detail, "as it was written", "altered")


def record(file: Path) -> dict[str, Any]:
    """A JSON object, empty where the file is gone or is none: what it should have said is then missing as a witness."""
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def word(content: Mapping[str, Any], key: str) -> str | None:
    """A value of a record as text, `None` where it does not say."""
    value = content.get(key)
    return None if value is None else str(value)


def _words(places: list[str]) -> str:
    return places[0] if len(places) == 1 else f"each of {', '.join(places)}"

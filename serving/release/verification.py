"""Whether the audit log is whole, and the releases are those that it tells of."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving.release import audit
from serving.release.audit import Entry, Head
from serving.release.fingerprints import EMPTY_LOG_HASH, fingerprint, name_of, older_than_the_log, origin
from serving.release.rows import Release
from serving.release.tables import RELEASES, open_database

_NAMED_ONE_BY_ONE = 100
"""Missing entries; of more than that, the first and the last."""


@dataclass(frozen=True)
class Finding:
    """Something that was altered, removed or inserted: which entry or release row, and what is wrong with it."""

    where: str
    what: str


@dataclass(frozen=True)
class Verification:
    """What was checked; nothing was tampered with where there is no finding."""

    entries: int
    releases: int
    older: tuple[str, ...]
    """Release rows from before the audit log, by name: they are as they were when it was opened."""
    findings: tuple[Finding, ...]


def verify_audit_log(url: str, key_folder: Path) -> Verification:
    """Check the log of the release store at an SQLAlchemy `url` with the trusted keys of `key_folder`."""
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            entries, head = list(audit.read_log(connection)), audit.read_head(connection)
            rows = [Release(**row) for row in connection.execute(sa.select(RELEASES)).mappings()]
        witnessed = audit.Witness(key_folder, engine.url).read()
    finally:
        engine.dispose()
    releases = {name_of(row.stage, row.sequence): asdict(row) for row in rows}
    older = _older_releases(entries, head, releases)
    findings = [
        *_beginning(entries, head, releases),
        *_chain(entries, head),
        *_head(entries, head, key_folder),
        *_witness(entries, witnessed),
        *_contents(entries, key_folder),
        *_releases(entries, releases, older),
    ]
    return Verification(len(entries), len(releases), tuple(sorted(older.keys() & releases.keys())), tuple(findings))


def _beginning(entries: Sequence[Entry], head: Head, releases: Mapping[str, dict[str, Any]]) -> list[Finding]:
    """A log without an entry has not begun: there is no release yet, or those that were taken over from before it."""
    if entries or head.entries > 0 or head.hash == origin(releases.values()):
        return []
    what = f"it has no entry, and does not begin with the {len(releases)} releases that are there: it was emptied"
    return [Finding("the log", what)]


def _chain(entries: Sequence[Entry], head: Head) -> list[Finding]:
    found, expected, previous_hash = [], 1, EMPTY_LOG_HASH
    for entry in entries:
        missing = _removed(expected, entry.sequence - 1)
        found += missing
        if entry.hash != audit.entry_hash(entry.previous_hash, entry.content):
            found.append(Finding(_name(entry), "it was altered: its hash is not that of its content"))
        if entry.previous_hash != previous_hash and not missing:
            found.append(Finding(_name(entry), "it does not follow the entry before it: one was altered or inserted"))
        if entry.sequence > head.entries >= 0:
            found.append(Finding(_name(entry), "it was inserted: the signed head does not count it"))
        if entry.sequence < 1:
            found.append(Finding(_name(entry), "it was inserted: the first entry has number 1"))
        expected, previous_hash = max(entry.sequence, 0) + 1, entry.hash
    return found + _removed(expected, head.entries)


def _removed(first: int, last: int) -> list[Finding]:
    if last - first < _NAMED_ONE_BY_ONE:
        return [Finding(f"entry {number}", "it was removed") for number in range(first, last + 1)]
    return [Finding(f"entries {first} to {last}", "they were removed")]


def _head(entries: Sequence[Entry], head: Head, key_folder: Path) -> list[Finding]:
    found = []
    if trouble := head.trouble(key_folder):
        found.append(Finding("the head", trouble))
    last = next((entry for entry in entries if entry.sequence == head.entries), None)
    if last is not None and last.hash != head.hash:
        found.append(Finding(_name(last), "it is not the one that the signed head names"))
    return found


def _witness(entries: Sequence[Entry], witnessed: Head | None) -> list[Finding]:
    """What this machine itself wrote must still be there."""
    if witnessed is None:
        return []
    name = f"entry {witnessed.entries}"
    there = next((entry for entry in entries if entry.sequence == witnessed.entries), None)
    if there is None:
        return [Finding(name, "this machine wrote it or one before it, and it is gone")]
    return [] if there.hash == witnessed.hash else [Finding(name, "it is not the one that this machine wrote")]


def _contents(entries: Sequence[Entry], key_folder: Path) -> list[Finding]:
    return [Finding(_name(entry), what) for entry in entries for what in _wrong_in(entry, key_folder)]


def _wrong_in(entry: Entry, key_folder: Path) -> list[str]:
    """What no writer of this log would have written, and what its writer found wrong with the log itself."""
    content = entry.parsed()
    if not content:
        return ["its content cannot be read"]
    found = []
    if content.get("sequence") != entry.sequence:
        found.append("its content is that of another entry")
    if "release" in content and _told_row(entry) is None:
        found.append("what it says of a release row cannot be read")
    if not isinstance(content.get("releases_before", {}), dict):
        found.append("what it says of the releases before it cannot be read")
    trouble = content.get("found")
    if "found_head" in content:
        try:
            trouble = Head.read(content["found_head"]).trouble(key_folder)
        except ValueError:
            found.append("what it says of the head before it cannot be read")
    return [*found, *([f"the log was not whole when it was written: {trouble}"] if trouble else [])]


def _older_releases(entries: Sequence[Entry], head: Head, releases: Mapping[str, dict[str, Any]]) -> Mapping[str, str]:
    """Fingerprints of the release rows that were there when the log was opened: its first entry noted them. Where nobody has
    opened it yet, of those that were taken over."""
    if not entries:
        taken_over = head.entries == 0 and head.hash == origin(releases.values())
        return older_than_the_log(releases.values()) if taken_over else {}
    first = entries[0]
    opened = first.sequence == 1 and first.parsed().get("action") == "opened"
    return first.part("releases_before") if opened else {}


def _told_row(entry: Entry) -> tuple[str, str] | None:
    """Name and fingerprint of the release row that an entry tells of."""
    release = entry.part("release")
    if not {"stage", "sequence"} <= release.keys():
        return None
    return name_of(release["stage"], release["sequence"]), fingerprint(release)


def _releases(
    entries: Sequence[Entry], releases: Mapping[str, dict[str, Any]], older: Mapping[str, str]
) -> list[Finding]:
    told = {}
    for entry in entries:
        if row := _told_row(entry):
            told[row[0]] = (entry.sequence, row[1])
    found = []
    for name, row in sorted(releases.items()):
        sequence, expected = told.get(name, (None, older.get(name)))
        if expected is None:
            found.append(Finding(name, "it was inserted: no entry of the audit log tells of it"))
        elif fingerprint(row) != expected:
            source = f"entry {sequence}" if sequence else "the log when it was opened"
            found.append(Finding(name, f"it was altered: it is not as {source} has it"))
    gone = [name for name in [*told, *older] if name not in releases]
    return found + [Finding(name, "it was removed") for name in gone]


def _name(entry: Entry) -> str:
    return f"entry {entry.sequence}"

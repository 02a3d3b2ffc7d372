"""Whether the audit log is whole, and the releases are those that it tells of."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from serving.release import audit
from serving.release.audit import Entry, Head
from serving.release.rows import Release
from serving.release.tables import EMPTY_LOG_HASH, RELEASES, open_database


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
    releases = {audit.name_of(row.stage, row.sequence): asdict(row) for row in rows}
    older = _older_releases(entries) if entries else _fingerprints(releases)
    findings = [
        *_chain(entries, head),
        *_head(entries, head, key_folder),
        *_witness(entries, witnessed),
        *_contents(entries, key_folder),
        *_releases(entries, releases, older),
    ]
    return Verification(len(entries), len(releases), tuple(sorted(older.keys() & releases.keys())), tuple(findings))


def _chain(entries: Sequence[Entry], head: Head) -> list[Finding]:
    found, expected, previous_hash = [], 1, EMPTY_LOG_HASH
    for entry in entries:
        missing = [f"entry {number}" for number in range(expected, entry.sequence)]
        found += [Finding(name, "it was removed") for name in missing]
        if entry.hash != audit.entry_hash(entry.previous_hash, entry.content):
            found.append(Finding(f"entry {entry.sequence}", "it was altered: its hash is not that of its content"))
        if entry.previous_hash != previous_hash and not missing:
            found.append(
                Finding(
                    f"entry {entry.sequence}", "it does not follow the entry before it: one was altered or inserted"
                )
            )
        if entry.sequence > head.entries >= 0:
            found.append(Finding(f"entry {entry.sequence}", "it was inserted: the signed head does not count it"))
        expected, previous_hash = entry.sequence + 1, entry.hash
    return found + [Finding(f"entry {number}", "it was removed") for number in range(expected, head.entries + 1)]


def _head(entries: Sequence[Entry], head: Head, key_folder: Path) -> list[Finding]:
    found = []
    if trouble := head.trouble(key_folder):
        found.append(Finding("the head", trouble))
    last = next((entry for entry in entries if entry.sequence == head.entries), None)
    if last is not None and last.hash != head.hash:
        found.append(Finding(f"entry {last.sequence}", "it is not the one that the signed head names"))
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
    found = []
    for entry in entries:
        content = entry.parsed()
        if content.get("sequence") != entry.sequence:
            found.append(Finding(f"entry {entry.sequence}", "its content is that of another entry"))
        trouble = content.get("found")
        if "found_head" in content:
            trouble = Head(**content["found_head"]).trouble(key_folder)
        if trouble:
            found.append(Finding(f"entry {entry.sequence}", f"the log was not whole when it was written: {trouble}"))
    return found


def _older_releases(entries: Sequence[Entry]) -> Mapping[str, str]:
    """Fingerprints of the release rows that were there when the log was opened."""
    found: dict[str, str] = {}
    for entry in entries:
        content = entry.parsed()
        if content.get("action") == "opened":
            found |= content.get("releases_before", {})
    return found


def _fingerprints(releases: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Where nobody has opened the log yet: of the rows that an earlier version wrote."""
    return {name: audit.fingerprint(row) for name, row in releases.items() if row["action"] is None}


def _releases(
    entries: Sequence[Entry], releases: Mapping[str, dict[str, Any]], older: Mapping[str, str]
) -> list[Finding]:
    told = {}
    for entry in entries:
        if release := entry.parsed().get("release"):
            told[audit.name_of(release["stage"], release["sequence"])] = (entry.sequence, audit.fingerprint(release))
    found = []
    for name, row in sorted(releases.items()):
        sequence, expected = told.get(name, (None, older.get(name)))
        if expected is None:
            found.append(Finding(name, "it was inserted: no entry of the audit log tells of it"))
        elif expected is not None and audit.fingerprint(row) != expected:
            source = f"entry {sequence}" if sequence else "the log when it was opened"
            found.append(Finding(name, f"it was altered: it is not as {source} has it"))
    gone = [name for name in [*told, *older] if name not in releases]
    return found + [Finding(name, "it was removed") for name in gone]

"""What was noted in the audit log when a candidate was registered: under which policy, and as which version."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from common.errors import GateError
from serving.release import audit


def noted_of(connection: sa.Connection, digest: str, evidence_digest: str) -> dict[str, Any]:
    """What was noted of the candidate and this evidence; empty where nothing was.

    Raises `GateError` where that entry of the audit log was altered.
    """
    for entry, release, noted in _registrations(connection):
        if (release.get("digest"), release.get("evidence_digest")) == (digest, evidence_digest):
            if entry.hash != audit.entry_hash(entry.previous_hash, entry.content):
                raise GateError(
                    f"the registration of package {digest} was altered",
                    where=f"audit log, entry {entry.sequence}",
                    fix=f"see `emuflow audit verify`; emuflow measure {digest[:12]} registers it with new evidence",
                )
            return noted
    return {}


def package_of(connection: sa.Connection, model: str, version: str) -> str | None:
    """The digest of the package that was registered last as this version of a registered model, if that is known."""
    for _, release, noted in _registrations(connection):
        if (noted.get("model"), noted.get("version")) == (model, version):
            return release.get("digest")
    return None


def _registrations(connection: sa.Connection) -> Iterator[tuple[audit.Entry, dict[str, Any], dict[str, Any]]]:
    """Each registration, the newest first: its entry, its row and what was noted."""
    for entry in audit.read_log(connection, newest_first=True):
        content = entry.parsed()
        if content.get("action") == "registration":
            yield entry, content.get("release") or {}, content.get("noted") or {}

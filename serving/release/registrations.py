"""What was noted in the audit log beside a release row: under which policy a candidate was registered, and which version of
the registry a package is."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from common.errors import GateError
from serving.release import audit


def noted_of(connection: sa.Connection, digest: str, evidence_digest: str) -> dict[str, Any]:
    """What was noted when the candidate was registered with this evidence; empty where nothing was.

    Raises `GateError` where that entry of the audit log was altered.
    """
    for entry in _noting(connection, "registration"):
        release = entry.part("release")
        if (release.get("digest"), release.get("evidence_digest")) == (digest, evidence_digest):
            if entry.hash != audit.entry_hash(entry.previous_hash, entry.content):
                raise GateError(
                    f"the registration of package {digest} was altered",
                    where=f"audit log, entry {entry.sequence}",
                    fix=f"see `emuflow audit verify`; emuflow measure {digest[:12]} registers it with new evidence",
                )
            return entry.part("noted")
    return {}


def package_of(connection: sa.Connection, model: str, version: str) -> str | None:
    """The digest of the package that came last as this version of a registered model, if that was noted: at its promotion,
    or, in older logs, at its registration."""
    for entry in _noting(connection, "promotion", "registration"):
        noted = entry.part("noted")
        if (noted.get("model"), noted.get("version")) == (model, version):
            return entry.part("release").get("digest")
    return None


def _noting(connection: sa.Connection, *actions: audit.Action) -> Iterator[audit.Entry]:
    """The entries of these actions, the newest first."""
    for entry in audit.read_log(connection, newest_first=True):
        if entry.parsed().get("action") in actions:
            yield entry

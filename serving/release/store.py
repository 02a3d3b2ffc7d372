"""The release store: which package each stage wants, and who decided it when, on what evidence.

One append-only table. A stage's newest row is its desired state, the rows before it are its history, and every write is
a compare-and-swap against the champion, and the package in staging, that its writer saw: of two writers, one row goes in. What was decided, and what
was refused, stands in the audit log (`audit.py`), written in the same transaction. By default the tables live in
MLflow's own SQLite file, where MLflow's migrations do not look at them; any SQLAlchemy URL (a team's PostgreSQL) will do.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from common.errors import PromotionConflictError, UsageError
from serving.package.signing import check_can_sign
from serving.release import audit, rules
from serving.release.database import writing
from serving.release.registrations import noted_of, package_of
from serving.release.rows import (
    CANDIDATE_STAGE,
    CHAMPION_STAGE,
    STAGING_STAGE,
    Approval,
    Release,
    ReleaseAction,
    history,
    newest,
)
from serving.release.tables import RELEASES, TABLE_NAME, open_database

__all__ = ["CHAMPION_STAGE", "TABLE_NAME", "Release", "ReleaseStore"]


class ReleaseStore:
    """Reads and appends releases at an SQLAlchemy `url`; the tables are made on first use.

    Whoever writes gives the `key_folder`, whose key signs the audit log's head. Raises `SignatureError` where it cannot sign:
    then, and not when the first of several things has been written.
    """

    def __init__(self, url: str, key_folder: Path | None = None):
        if key_folder is not None:
            check_can_sign(key_folder)
        self._engine = open_database(url)
        self._key_folder = key_folder

    def current(self, stage: str = CHAMPION_STAGE) -> Release | None:
        """What `stage` wants now, `None` where nothing ever came to it."""
        with self._engine.connect() as connection:
            return newest(connection, stage)

    def history(self, stage: str = CHAMPION_STAGE) -> list[Release]:
        """Every release of `stage`, the newest first."""
        with self._engine.connect() as connection:
            return history(connection, stage)

    def audit_log(self) -> list[audit.Entry]:
        """Every entry of the audit log, the oldest first."""
        with self._engine.connect() as connection:
            return list(audit.read_log(connection))

    def register(
        self,
        digest: str,
        *,
        evidence_digest: str,
        measured_against: str | None,
        actor: str,
        reason: str,
        noted: Mapping[str, Any] | None = None,
    ) -> Release:
        """Record a candidate with its evidence, whatever the verdict; the same evidence again gives the same row.

        `noted` stands in the audit log with it: the `policy` that its promotion goes by. It must have a JSON form.
        """
        with self._writing() as desk:
            for known in history(desk.connection, CANDIDATE_STAGE):
                if (known.digest, known.evidence_digest) == (digest, evidence_digest):
                    return known
            return desk.append(
                CANDIDATE_STAGE,
                digest,
                action="registration",
                evidence_digest=evidence_digest,
                measured_against=measured_against,
                actor=actor,
                reason=reason,
                noted=noted,
            )

    def noted(self, digest: str, evidence_digest: str) -> dict[str, Any]:
        """What was noted when the candidate was registered with this evidence; empty where nothing was.

        Raises `GateError` where that entry of the audit log was altered.
        """
        with self._engine.connect() as connection:
            return noted_of(connection, digest, evidence_digest)

    def package_of(self, model: str, version: str) -> str | None:
        """The digest of the package that came last as this version of the registered model, `None` where that was not noted."""
        with self._engine.connect() as connection:
            return package_of(connection, model, version)

    def promote(
        self,
        stage: str,
        digest: str,
        *,
        expected_current: str | None,
        evidence_digest: str | None,
        actor: str,
        reason: str,
        approval: Approval | None = None,
        staged_before: int | None = None,
        noted: Mapping[str, Any] | None = None,
    ) -> Release:
        """Make `digest` the wanted package of `stage`, if the champion still is `expected_current` (`None`: there is none),
        which the evidence was measured against. On its way to champion a package passes staging: both rows go in, or none.
        `staged_before` is the sequence of staging's row that the caller saw (0: none): a promotion to staging replaces
        only that one; `None`: whatever stands there. `noted` stands in the audit log with it: the `model` and the `version`
        that the package is in the registry.

        A promotion that is done already stands, and is returned. Raises `PromotionConflictError`, with the refusal in the
        audit log, where another promotion came first, to champion or to staging, this evidence has made it the champion once
        before, or the package was registered with other evidence since.
        """
        row: dict[str, Any] = {"evidence_digest": evidence_digest, "actor": actor, "reason": reason}
        row |= {"action": "promotion", "measured_against": expected_current}
        if approval is not None:
            row |= {"approved_by": approval.by, "approval_reason": approval.reason}
        conflict: PromotionConflictError | None = None
        try:
            with self._writing() as desk:
                there = newest(desk.connection, stage)
                if there and evidence_digest and (there.digest, there.evidence_digest) == (digest, evidence_digest):
                    return there
                conflict = rules.conflict(desk.connection, stage, digest, expected_current, evidence_digest)
                if conflict is None and stage == STAGING_STAGE and staged_before is not None:
                    conflict = rules.another_staged(desk.connection, staged_before)
                if conflict is None:
                    if approval is not None:
                        desk.log.write(
                            "approval", stage=stage, digest=digest, actor=approval.by, reason=approval.reason
                        )
                    return [
                        desk.append(each, digest, noted=noted, **row)
                        for each in rules.stages_to(desk.connection, stage, digest, evidence_digest)
                    ][-1]
                desk.refuse(stage, digest, evidence_digest, actor, str(conflict))
        except IntegrityError:  # a writer that takes no notice of the audit log's lock
            winner = self.current(CHAMPION_STAGE)
            conflict = rules.another_champion(digest, expected_current, winner.digest if winner else None)
            self.refuse(stage, digest, evidence_digest=evidence_digest, actor=actor, reason=str(conflict))
        raise conflict

    def roll_back(self, digest: str, *, expected_current: str, actor: str, reason: str) -> Release:
        """Make the earlier champion `digest` the wanted one again, if the champion still is `expected_current`.

        Raises `PromotionConflictError` where it is not, `GateError` where `digest` was never the champion; the audit log
        then has the refusal.
        """
        with self._writing() as desk:
            champions = history(desk.connection, CHAMPION_STAGE)
            refusal = rules.why_no_rollback(champions, digest, expected_current)
            if refusal is None:
                earlier = next(release for release in champions if release.digest == digest)
                return desk.append(
                    CHAMPION_STAGE,
                    digest,
                    action="rollback",
                    evidence_digest=earlier.evidence_digest,
                    measured_against=earlier.measured_against,
                    actor=actor,
                    reason=reason,
                )
            desk.refuse(CHAMPION_STAGE, digest, None, actor, str(refusal))
        raise refusal

    def complete_rollback(self, release: Release, **told: Any) -> None:
        """Record that the command came to its end, and what followed it. `told` goes into the audit log."""
        with self._writing() as desk:
            desk.log.write(
                "rollback completed", stage=release.stage, digest=release.digest, of=release.sequence, **told
            )

    def unfinished_rollback(self) -> Release | None:
        """The newest champion's row, where it is a rollback whose command did not come to its end."""
        with self._engine.connect() as connection:
            champion = newest(connection, CHAMPION_STAGE)
            if champion is None or champion.action != "rollback":
                return None
            for entry in audit.read_log(connection, newest_first=True):
                content = entry.parsed()
                if content.get("action") == "rollback completed" and content.get("of") == champion.sequence:
                    return None
                if content.get("action") == "rollback":
                    break
            return champion

    def refuse(self, stage: str, digest: str, *, evidence_digest: str | None, actor: str, reason: str) -> None:
        """Record in the audit log that `digest` did not come to `stage`, and why."""
        with self._writing() as desk:
            desk.refuse(stage, digest, evidence_digest, actor, reason)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator["_Desk"]:
        """One transaction over releases and audit log, of which there is only one at a time."""
        if self._key_folder is None:
            raise UsageError(
                "this release store was opened for reading", fix="open it with the folder of the signing key"
            )
        with writing(self._engine) as connection:
            witness = audit.Witness(self._key_folder, self._engine.url)
            desk = _Desk(connection, audit.Writer(connection, self._key_folder, witness))
            yield desk
            head = desk.log.seal()
        witness.keep(head)


@dataclass(frozen=True)
class _Desk:
    """Where rows are written within one transaction."""

    connection: sa.Connection
    log: audit.Writer

    def append(
        self, stage: str, digest: str, *, action: ReleaseAction, noted: Mapping[str, Any] | None = None, **columns: Any
    ) -> Release:
        before = newest(self.connection, stage)
        release = Release(
            stage=stage,
            sequence=before.sequence + 1 if before else 1,
            digest=digest,
            previous_digest=before.digest if before else None,
            time=audit.now(),
            action=action,
            **columns,
        )
        self.connection.execute(RELEASES.insert().values(**vars(release)))
        self.log.write(action, release=asdict(release), **({"noted": noted} if noted else {}))
        return release

    def refuse(self, stage: str, digest: str, evidence_digest: str | None, actor: str, reason: str) -> None:
        self.log.write(
            "refusal", stage=stage, digest=digest, evidence_digest=evidence_digest, actor=actor, reason=reason
        )

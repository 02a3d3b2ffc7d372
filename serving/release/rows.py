"""A release row, and how rows are read."""

from dataclasses import dataclass
from typing import Literal

import sqlalchemy as sa

from serving.release.tables import RELEASES

CANDIDATE_STAGE, STAGING_STAGE, CHAMPION_STAGE = "candidate", "staging", "champion"
STAGES = (CANDIDATE_STAGE, STAGING_STAGE, CHAMPION_STAGE)
ReleaseAction = Literal["registration", "promotion", "rollback"]


@dataclass(frozen=True)
class Approval:
    """The person who wants a promotion, and why."""

    by: str
    reason: str


@dataclass(frozen=True)
class Release:
    """One row: from `time` (UTC, ISO 8601) on, `stage` wants the package `digest` in the place of `previous_digest`.

    `evidence_digest` is the sha256 of the `verdict.json` that it rests on, `measured_against` the champion that this
    names. `action` is `None` in rows that are older than the audit log.
    """

    stage: str
    sequence: int
    digest: str
    previous_digest: str | None
    evidence_digest: str | None
    actor: str
    reason: str
    time: str
    action: ReleaseAction | None = None
    measured_against: str | None = None
    approved_by: str | None = None
    approval_reason: str | None = None


def newest(connection: sa.Connection, stage: str) -> Release | None:
    query = sa.select(RELEASES).where(RELEASES.c.stage == stage).order_by(RELEASES.c.sequence.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return Release(**row) if row else None


def history(connection: sa.Connection, stage: str) -> list[Release]:
    query = sa.select(RELEASES).where(RELEASES.c.stage == stage).order_by(RELEASES.c.sequence.desc())
    return [Release(**row) for row in connection.execute(query).mappings()]

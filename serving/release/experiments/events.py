"""Outcome events: what came of each request, and what the user said of it. One append-only table."""

import math
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sqlalchemy as sa

from common.errors import DataError, UsageError
from serving.release.experiments.assignment import Assignment
from serving.release.experiments.database import Database

_metadata = sa.MetaData()
_events = sa.Table(
    "emuflow_outcomes",
    _metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("response_id", sa.String(64), nullable=False, index=True),
    sa.Column("experiment", sa.String(64), nullable=False),
    sa.Column("arm", sa.String(64), nullable=False),
    sa.Column("challenger", sa.String(64), nullable=False),
    sa.Column("share", sa.Double, nullable=False),
    sa.Column("package_digest", sa.String(64), nullable=False),
    sa.Column("user_hash", sa.String(64), nullable=False),
    sa.Column("time", sa.Double, nullable=False),
    sa.Column("latency_ms", sa.Double),
    sa.Column("error", sa.String(64)),
    sa.Column("vote", sa.SmallInteger),
    sa.Index("emuflow_outcomes_in_order", "experiment", "challenger", "kind", "time"),
)


@dataclass(frozen=True)
class Outcome:
    """One request. Raises `DataError` for a latency that is missing, infinite or negative: it would say nothing."""

    assignment: Assignment
    response_id: str
    time: float
    """When it was asked, in seconds since 1970 (UTC)."""
    latency_ms: float
    """Until the image or the error."""
    error: str | None = None
    """The class of the error; None: there is an image."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.latency_ms) and self.latency_ms >= 0):
            raise DataError(f"a latency of {self.latency_ms} ms", where=f"outcome of response '{self.response_id}'")
        _check_time(self.time, self.response_id)

    def row(self) -> dict[str, Any]:
        return _row(self, "outcome") | {"latency_ms": self.latency_ms, "error": self.error, "vote": None}


@dataclass(frozen=True)
class Vote:
    """What a user said of a response, at any later time: +1 or -1. Raises `DataError` for anything else."""

    assignment: Assignment
    response_id: str
    time: float
    vote: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        if self.vote not in (-1, 1):
            raise DataError(f"a vote is +1 or -1, not {self.vote}", where=f"vote on response '{self.response_id}'")
        _check_time(self.time, self.response_id)

    def row(self) -> dict[str, Any]:
        return _row(self, "vote") | {"latency_ms": None, "error": None, "vote": self.vote}


Event = Outcome | Vote


@dataclass(frozen=True)
class EventTable:
    """Events of one kind in one challenger's lane, in the order of their times. Arrays of one length [n]."""

    user_hash: list[str]
    time: np.ndarray
    is_challenger: np.ndarray
    share: np.ndarray
    latency_ms: np.ndarray
    failed: np.ndarray
    vote: np.ndarray
    """NaN where the kind has none."""
    foreign: int = 0
    """Events that were left out: another package than the arm's had answered."""

    def __len__(self) -> int:
        return len(self.user_hash)


@dataclass(frozen=True)
class ArmSummary:
    """What is known of an arm, plainly counted."""

    arm: str
    requests: int
    users: int
    errors: int
    mean_latency_ms: float | None
    good_votes: int
    bad_votes: int


class EventStore:
    """Appends and reads events at an SQLAlchemy `url`; the table is made on first use."""

    def __init__(self, url: str):
        self._database = Database(url, _metadata)

    def write(self, events: Iterable[Event], *, again: bool = False) -> None:
        """Append, all or none. `again`: an earlier try of the same events may have gone in after all."""
        rows = [event.row() for event in events]
        with self._database.writing() as connection:
            if again:
                query = sa.select(_events.c.id).where(_events.c.id.in_([row["id"] for row in rows]))
                known = set(connection.execute(query).scalars())
                rows = [row for row in rows if row["id"] not in known]
            if rows:
                connection.execute(_events.insert(), rows)

    def assignment(self, response_id: str) -> Assignment:
        """Of the request that `response_id` answered. Raises `UsageError` where nothing is known of it."""
        query = sa.select(_events).where(_events.c.response_id == response_id, _events.c.kind == "outcome").limit(1)
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().one_or_none()
        if row is None:
            raise UsageError(f"no outcome of a response '{response_id}' is known", fix="give the id of an answer")
        return Assignment(**{name: row[name] for name in Assignment.__dataclass_fields__})

    def table(self, experiment: str, challenger: str, kind: str, digests: Sequence[str]) -> EventTable:
        """The `outcome` or `vote` events of a challenger and of the control's users in its lane.

        `digests` are the packages of the two arms: what another one answered is no evidence of them, and only counted.
        """
        columns = ("user_hash", "time", "arm", "share", "latency_ms", "error", "vote", "package_digest")
        query = (
            sa.select(*(_events.c[name] for name in columns))
            .where(_events.c.experiment == experiment, _events.c.challenger == challenger, _events.c.kind == kind)
            .order_by(_events.c.time, _events.c.id)
        )
        with self._database.reading() as connection:
            found = connection.execute(query).all()
        rows = [row for row in found if row.package_digest in digests]
        return EventTable(
            user_hash=[row.user_hash for row in rows],
            time=np.array([row.time for row in rows], dtype=float),
            is_challenger=np.array([row.arm == challenger for row in rows], dtype=bool),
            share=np.array([row.share for row in rows], dtype=float),
            latency_ms=np.array([row.latency_ms for row in rows], dtype=float),
            failed=np.array([row.error is not None for row in rows], dtype=bool),
            vote=np.array([row.vote for row in rows], dtype=float),
            foreign=len(found) - len(rows),
        )

    def summary(self, experiment: str) -> list[ArmSummary]:
        """Each arm that anything was recorded of, by name."""
        outcome = _events.c.kind == "outcome"

        def count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
            return sa.func.sum(sa.case((condition, 1), else_=0))

        query = (
            sa.select(
                _events.c.arm,
                count(outcome).label("requests"),
                sa.func.count(sa.distinct(_events.c.user_hash)).label("users"),
                count(outcome & _events.c.error.is_not(None)).label("errors"),
                sa.func.avg(_events.c.latency_ms).label("mean_latency_ms"),
                count(_events.c.vote == 1).label("good_votes"),
                count(_events.c.vote == -1).label("bad_votes"),
            )
            .where(_events.c.experiment == experiment)
            .group_by(_events.c.arm)
            .order_by(_events.c.arm)
        )
        with self._database.reading() as connection:
            return [ArmSummary(**row) for row in connection.execute(query).mappings()]

    def close(self) -> None:
        self._database.close()


def _row(event: Event, kind: str) -> dict[str, Any]:
    own = {"id": event.id, "kind": kind, "response_id": event.response_id, "time": event.time}
    return own | vars(event.assignment)


def _check_time(time: float, response_id: str) -> None:
    if not math.isfinite(time):
        raise DataError(f"a time of {time}", where=f"response '{response_id}'")

"""The state of experiments: one append-only table, in which each change is a compare-and-swap with its reasons."""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from common.errors import EmuflowError, ExperimentConflictError, UsageError
from serving.release.experiments.database import Database
from serving.release.experiments.experiment import Experiment

_metadata = sa.MetaData()
_states = sa.Table(
    "emuflow_experiments",
    _metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("experiment", sa.Text, nullable=False),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("evidence", sa.Text, nullable=False),
    sa.Column("time", sa.String(40), nullable=False),
)


@dataclass(frozen=True)
class Record:
    """From `time` (UTC, ISO 8601) on the experiment was this; who made it so, why, and on what evidence."""

    sequence: int
    experiment: Experiment
    actor: str
    reason: str
    evidence: Any
    """JSON: by arm the findings that the change rests on."""
    time: str


Refuse = Callable[[list[Record]], EmuflowError | None]
"""Why a change must not be, from the newest state of every experiment; `None` where it may."""


class ExperimentStore:
    """Reads and appends states at an SQLAlchemy `url`; the table is made on first use."""

    def __init__(self, url: str):
        self._database = Database(url, _metadata)

    def current(self, name: str) -> Record:
        """Raises `UsageError` where there is no such experiment."""
        with self._database.reading() as connection:
            newest = _newest(connection, name)
        if newest is None:
            raise UsageError(f"there is no experiment '{name}'", fix="start it, or correct the name")
        return newest

    def newest(self) -> list[Record]:
        """The state of every experiment now, the one that changed last first."""
        with self._database.reading() as connection:
            return _newest_of_each(connection)

    def history(self, name: str) -> list[Record]:
        """Every state of `name`, the newest first."""
        query = sa.select(_states).where(_states.c.name == name).order_by(_states.c.sequence.desc())
        with self._database.reading() as connection:
            return [_record(row) for row in connection.execute(query).mappings()]

    def change(
        self,
        experiment: Experiment,
        *,
        expected_sequence: int,
        actor: str,
        reason: str,
        evidence: Any = None,
        refuse: Refuse | None = None,
    ) -> Record:
        """Append a state, if the newest one still is `expected_sequence` (0: there is none yet).

        Raises `ExperimentConflictError`, with nothing written, where another change came first, and what `refuse` gives of
        all experiments as they are then: nobody changes one of them in between.
        """
        record = Record(
            sequence=expected_sequence + 1,
            experiment=experiment,
            actor=actor,
            reason=reason,
            evidence=evidence or {},
            time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        )
        row = {
            "name": experiment.name,
            **{name: getattr(record, name) for name in ("sequence", "actor", "reason", "time")},
            "experiment": experiment.model_dump_json(),
            "evidence": json.dumps(record.evidence, allow_nan=False),
        }
        try:
            with self._database.writing() as connection:
                if refuse is not None:
                    _lock(connection)
                    if (refusal := refuse(_newest_of_each(connection))) is not None:
                        raise refusal
                newest = _newest(connection, experiment.name)
                if (newest.sequence if newest else 0) != expected_sequence:
                    raise _conflict(experiment.name)
                connection.execute(_states.insert().values(**row))
        except IntegrityError:
            raise _conflict(experiment.name) from None
        return record

    def close(self) -> None:
        self._database.close()


def _newest(connection: sa.Connection, name: str) -> Record | None:
    query = sa.select(_states).where(_states.c.name == name).order_by(_states.c.sequence.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return _record(row) if row else None


def _newest_of_each(connection: sa.Connection) -> list[Record]:
    latest = sa.select(_states.c.name, sa.func.max(_states.c.sequence).label("sequence")).group_by(_states.c.name)
    chosen = latest.subquery()
    same = (_states.c.name == chosen.c.name) & (_states.c.sequence == chosen.c.sequence)
    rows = connection.execute(sa.select(_states).join(chosen, same).order_by(_states.c.time.desc())).mappings()
    return [_record(row) for row in rows]


def _lock(connection: sa.Connection) -> None:
    """Let nobody else write states in this transaction; in SQLite it is the only one that writes anyway."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"LOCK TABLE {_states.name} IN SHARE ROW EXCLUSIVE MODE")


def _record(row: Mapping[Any, Any]) -> Record:
    return Record(
        sequence=row["sequence"],
        experiment=Experiment.parse_json(row["experiment"]),
        actor=row["actor"],
        reason=row["reason"],
        evidence=json.loads(row["evidence"]),
        time=row["time"],
    )


def _conflict(name: str) -> ExperimentConflictError:
    return ExperimentConflictError(
        "it has changed since it was read", where=f"experiment '{name}'", fix="read it again and decide anew"
    )

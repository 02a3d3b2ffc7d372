"""The release store: which package each stage wants, and who decided it when, on what evidence.

One append-only table. A stage's newest row is its desired state, the rows before it are the audit trail, and the
unique (stage, sequence) makes a promotion a compare-and-swap: of two writers that saw the same newest row, one row
goes in. By default the table lives in MLflow's own SQLite file, where MLflow's migrations do not look at it; any
SQLAlchemy URL (a team's PostgreSQL) will do.
"""

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from common.errors import PromotionConflictError

CHAMPION_STAGE = "champion"
TABLE_NAME = "emuflow_releases"
_BUSY_TIMEOUT_MS = 15_000

_metadata = sa.MetaData()
_releases = sa.Table(
    TABLE_NAME,
    _metadata,
    sa.Column("stage", sa.String(64), primary_key=True),
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("previous_digest", sa.String(64)),
    sa.Column("evidence_digest", sa.String(64)),
    sa.Column("actor", sa.String(255), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("time", sa.String(40), nullable=False),
)


@dataclass(frozen=True)
class Release:
    """One row: from `time` (UTC, ISO 8601) on, `stage` wants the package `digest` in the place of `previous_digest`.

    `evidence_digest` is the sha256 of the `verdict.json` that it rests on.
    """

    stage: str
    sequence: int
    digest: str
    previous_digest: str | None
    evidence_digest: str | None
    actor: str
    reason: str
    time: str


class ReleaseStore:
    """Reads and appends releases at an SQLAlchemy `url`; the table is made on first use."""

    def __init__(self, url: str):
        self._engine = _engine(url)
        if not sa.inspect(self._engine).has_table(TABLE_NAME):
            with self._writing() as connection:
                _metadata.create_all(connection, checkfirst=True)

    def current(self, stage: str = CHAMPION_STAGE) -> Release | None:
        """What `stage` wants now, `None` where nothing was ever promoted to it."""
        with self._engine.connect() as connection:
            return _newest(connection, stage)

    def history(self, stage: str = CHAMPION_STAGE) -> list[Release]:
        """Every release of `stage`, the newest first."""
        query = sa.select(_releases).where(_releases.c.stage == stage).order_by(_releases.c.sequence.desc())
        with self._engine.connect() as connection:
            return [Release(**row) for row in connection.execute(query).mappings()]

    def promote(
        self,
        stage: str,
        digest: str,
        *,
        expected_current: str | None,
        evidence_digest: str | None,
        actor: str,
        reason: str,
    ) -> Release:
        """Make `digest` the wanted package of `stage`, if the wanted one still is `expected_current` (`None`: none yet).

        Raises `PromotionConflictError`, with nothing written, where another promotion came first.
        """
        try:
            with self._writing() as connection:
                newest = _newest(connection, stage)
                found = newest.digest if newest else None
                if found != expected_current:
                    raise _conflict(stage, expected_current, found)
                release = Release(
                    stage=stage,
                    sequence=newest.sequence + 1 if newest else 1,
                    digest=digest,
                    previous_digest=found,
                    evidence_digest=evidence_digest,
                    actor=actor,
                    reason=reason,
                    time=datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
                )
                connection.execute(_releases.insert().values(**vars(release)))
                return release
        except IntegrityError:
            winner = self.current(stage)
            raise _conflict(stage, expected_current, winner.digest if winner else None) from None

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction that takes SQLite's write lock at its start: reading first and locking later would fail at
        once, without waiting, when another writer came between."""
        with self._engine.connect() as connection:
            if self._engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise


def _newest(connection: sa.Connection, stage: str) -> Release | None:
    query = sa.select(_releases).where(_releases.c.stage == stage).order_by(_releases.c.sequence.desc()).limit(1)
    row = connection.execute(query).mappings().one_or_none()
    return Release(**row) if row else None


def _conflict(stage: str, expected: str | None, found: str | None) -> PromotionConflictError:
    return PromotionConflictError(
        f"the evidence was measured against {expected or 'no champion'}, but the stage now holds {found or 'none'}",
        where=f"stage '{stage}'",
        fix="measure the candidate against the new champion: run the benchmark, the gate and the promotion again",
    )


def _engine(url: str) -> sa.Engine:
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)  # a connection that the database dropped is replaced
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url)

    @event.listens_for(engine, "connect")
    def _configure(connection, _record) -> None:
        # The driver would otherwise begin transactions by itself, deferred, at the first write.
        connection.isolation_level = None
        connection.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA journal_mode=WAL")

    return engine

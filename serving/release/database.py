"""An SQLite file that several processes write at once, or a team's own database server, behind one address."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import sqlalchemy as sa
from sqlalchemy import event

_BUSY_TIMEOUT_MS = 30_000
Synchronous = Literal["FULL", "NORMAL"]
"""What a commit to SQLite survives: the end of the machine, or that of the process alone, for much less time."""


def connect(url: str, *, synchronous: Synchronous = "FULL") -> sa.Engine:
    """The database at an SQLAlchemy `url`; an SQLite file's folder is made."""
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
        connection.execute(f"PRAGMA synchronous={synchronous}")

    return engine


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that takes SQLite's write lock at its start: reading first and locking later would fail at once,
    without waiting, when another writer came between."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        try:
            yield connection
            connection.commit()
        except BaseException:
            connection.rollback()
            raise

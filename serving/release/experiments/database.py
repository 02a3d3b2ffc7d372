"""The database of experiments: an SQLite file that several processes use at once, or a team's own server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

_BUSY_TIMEOUT_MS = 15_000


class Database:
    """An SQLAlchemy `url`; the tables of `metadata` are made on first use."""

    def __init__(self, url: str, metadata: sa.MetaData):
        self.engine = _engine(url)
        inspector = sa.inspect(self.engine)
        if not all(inspector.has_table(name) for name in metadata.tables):
            with self.writing() as connection:
                metadata.create_all(connection, checkfirst=True)

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """One transaction, which takes SQLite's write lock at its start: reading first and locking later would fail at
        once, without waiting, when another writer came between."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    def close(self) -> None:
        self.engine.dispose()


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
        connection.execute("PRAGMA synchronous=NORMAL")  # in WAL safe against a crash of the process

    return engine

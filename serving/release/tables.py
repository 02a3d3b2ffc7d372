"""The tables of the release store, and the database that they are in.

A database from before the audit log is taken over: its tables get what they lack, its rows stay as they are, and the
head of the empty log names them, so that a log that was emptied does not pass for one that has not begun.
"""

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from serving.release.database import connect, writing
from serving.release.fingerprints import origin

TABLE_NAME = "emuflow_releases"
_PREPARING_TRIES = 3

_metadata = sa.MetaData()
RELEASES = sa.Table(
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
    # Empty in rows that are older than the audit log.
    sa.Column("action", sa.String(16)),
    sa.Column("measured_against", sa.String(64)),
    sa.Column("approved_by", sa.String(255)),
    sa.Column("approval_reason", sa.Text),
)
AUDIT = sa.Table(
    "emuflow_audit",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("previous_hash", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("content", sa.Text, nullable=False),
)
HEAD = sa.Table(
    "emuflow_audit_head",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("entries", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
    sa.Column("signature", sa.String(128)),
)
HEAD_ID = 1


def open_database(url: str) -> sa.Engine:
    """Connect to an SQLAlchemy `url` and see to it that the tables are there."""
    engine = connect(url)
    for attempt in range(1, _PREPARING_TRIES + 1):
        if _is_ready(engine):
            break
        try:
            _prepare(engine)
        except (IntegrityError, OperationalError, ProgrammingError):  # another process does the same at this moment
            if attempt == _PREPARING_TRIES:
                raise
    return engine


def _is_ready(engine: sa.Engine) -> bool:
    inspector = sa.inspect(engine)
    if not all(inspector.has_table(table.name) for table in _metadata.sorted_tables):
        return False
    if _missing_columns(inspector):
        return False
    with engine.connect() as connection:
        return connection.execute(sa.select(HEAD.c.id)).first() is not None


def _prepare(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        from_before = _is_from_before(sa.inspect(connection))
        _metadata.create_all(connection, checkfirst=True)
        for column in _missing_columns(sa.inspect(connection)):
            kind = column.type.compile(engine.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {TABLE_NAME} ADD COLUMN {column.name} {kind}")
        if connection.execute(sa.select(HEAD.c.id)).first() is None:
            rows = [dict(row) for row in connection.execute(sa.select(RELEASES)).mappings()] if from_before else []
            connection.execute(HEAD.insert().values(id=HEAD_ID, entries=0, hash=origin(rows)))


def _is_from_before(inspector: sa.Inspector) -> bool:
    """Whether a version wrote it that had no audit log."""
    has_log = inspector.has_table(AUDIT.name) or inspector.has_table(HEAD.name)
    return inspector.has_table(TABLE_NAME) and not has_log and bool(_missing_columns(inspector))


def _missing_columns(inspector: sa.Inspector) -> list[sa.Column]:
    present = {column["name"] for column in inspector.get_columns(TABLE_NAME)}
    return [column for column in RELEASES.columns if column.name not in present]

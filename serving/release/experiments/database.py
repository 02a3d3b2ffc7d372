"""The tables of experiments, in the database of `serving.release.database`."""

from contextlib import AbstractContextManager

import sqlalchemy as sa

from serving.release.database import connect, writing


class Database:
    """An SQLAlchemy `url`; the tables of `metadata` are made on first use."""

    def __init__(self, url: str, metadata: sa.MetaData):
        self.engine = connect(url, synchronous="NORMAL")
        inspector = sa.inspect(self.engine)
        if not all(inspector.has_table(name) for name in metadata.tables):
            with self.writing() as connection:
                metadata.create_all(connection, checkfirst=True)

    def reading(self) -> AbstractContextManager[sa.Connection]:
        return self.engine.connect()

    def writing(self) -> AbstractContextManager[sa.Connection]:
        """One transaction."""
        return writing(self.engine)

    def close(self) -> None:
        self.engine.dispose()

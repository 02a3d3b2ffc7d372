"""A log without an entry: a store that is new, a database from before the log, or one that somebody emptied."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log
from tests.serving.release.test_audit import D, E, database, findings, promote, sql, tamper
from tests.serving.release.test_store import older_database

__all__ = ["database"]
EMPTIED = (
    "DELETE FROM emuflow_audit",
    f"UPDATE emuflow_audit_head SET entries = 0, hash = '{'0' * 64}', signature = NULL",
)
FORGED = f"UPDATE emuflow_releases SET digest = '{D}' WHERE stage = 'champion' AND sequence = 3"
AS_IF_OLDER = "UPDATE emuflow_releases SET action = NULL, measured_against = NULL"
BEFORE_THE_LOG = (
    "DROP TABLE emuflow_audit",
    "DROP TABLE emuflow_audit_head",
    "DELETE FROM emuflow_releases WHERE stage <> 'champion'",
    *(
        f"ALTER TABLE emuflow_releases DROP COLUMN {name}"
        for name in ("action", "measured_against", "approved_by", "approval_reason")
    ),
)


@pytest.fixture
def stranger(release_keys: Path, tmp_path: Path) -> Path:
    """The keys of a machine that has never written to the database, and trusts the one that has."""
    keys = tmp_path / "stranger"
    keys.mkdir()
    release_keys.mkdir(exist_ok=True)
    for key in release_keys.glob("*.pub"):
        shutil.copyfile(key, keys / "first.pub")
    return keys


@pytest.mark.parametrize("tables", [EMPTIED, BEFORE_THE_LOG[:2]], ids=["rows gone", "tables gone"])
def test_an_emptied_log_is_found_by_a_machine_that_never_wrote_to_it(database, url, stranger, tables):
    """Its rows claim to be older than the log; the next writer does not take them over, and says so for ever."""
    tamper(database, sql(*tables, AS_IF_OLDER, FORGED))
    assert {"the log", "champion #1", "champion #3"} <= set(findings(url, stranger))
    assert verify_audit_log(url, stranger).older == ()
    store = ReleaseStore(url, stranger)
    promote(store, E, D)
    store.close()
    found = verify_audit_log(url, stranger)
    assert found.older == () and {"champion #1", "champion #3"} <= {each.where for each in found.findings}
    (told,) = [each.what for each in found.findings if each.where == "entry 1"]
    assert "not whole when it was written: it had no entry" in told


def test_a_database_that_was_made_to_look_older_than_the_log_is_found_where_it_was_written(database, url, release_keys, stranger):  # fmt: skip
    tamper(database, sql(*BEFORE_THE_LOG, FORGED))
    assert findings(url, stranger) == [], "nothing is left that would tell it from one that is older"
    assert findings(url, release_keys) == ["entry 8"]
    promote(ReleaseStore(url, release_keys), E, D)
    told = {each.where: each.what for each in verify_audit_log(url, release_keys).findings}
    assert told.keys() == {"entry 1", "entry 8"} and "which this machine had written, was gone" in told["entry 1"]


def test_rows_that_were_altered_between_their_takeover_and_the_first_entry_are_found(url, release_keys, tmp_path):
    file = tmp_path / "mlflow" / "mlflow.db"
    older_database(file)
    ReleaseStore(url).close()  # who only reads takes the database over, too
    taken_over = verify_audit_log(url, release_keys)
    assert taken_over.older == ("champion #1", "champion #2") and taken_over.findings == ()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE emuflow_releases SET digest = ? WHERE sequence = 2", (D,))
    assert "the log" in findings(url, release_keys)
    promote(ReleaseStore(url, release_keys), E, D)
    assert findings(url, release_keys) == ["champion #1", "champion #2", "entry 1"]


def test_a_new_store_is_whole_before_anything_is_written(url, release_keys):
    ReleaseStore(url).close()
    assert verify_audit_log(url, release_keys).findings == ()

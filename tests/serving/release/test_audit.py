"""What `audit verify` finds: any altered, removed or inserted row, by its name."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import PromotionConflictError
from serving.release.audit import entry_hash
from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log

A, B, C, D, E = (letter * 64 for letter in "abcde")
Tamper = Callable[[sqlite3.Connection], object]


def promote(store: ReleaseStore, digest: str, expected: str | None) -> None:
    store.promote(
        "champion", digest, expected_current=expected, evidence_digest=digest[::-1], actor="tester", reason="PASS"
    )


@pytest.fixture
def database(tmp_path: Path, url: str, release_keys: Path) -> Path:
    """Entries: 1 opened, 2 and 3 of A, 4 and 5 of B, 6 a refusal, 7 and 8 of C."""
    store = ReleaseStore(url, release_keys)
    promote(store, A, None)
    promote(store, B, A)
    with pytest.raises(PromotionConflictError):
        promote(store, D, A)
    promote(store, C, B)
    store.close()
    return tmp_path / "mlflow" / "mlflow.db"


def tamper(database: Path, change: Tamper) -> None:
    connection = sqlite3.connect(database)
    change(connection)
    connection.commit()
    connection.close()


def findings(url: str, release_keys: Path) -> list[str]:
    return sorted({finding.where for finding in verify_audit_log(url, release_keys).findings})


def sql(*statements: str) -> Tamper:
    return lambda connection: [connection.execute(statement) for statement in statements]


def rewrite(connection: sqlite3.Connection) -> None:
    """Alter entry 6 and make the chain fit again, up to the head, which cannot be signed."""
    rows = connection.execute("SELECT sequence, previous_hash, content FROM emuflow_audit ORDER BY sequence").fetchall()
    previous = rows[0][1]
    for sequence, _, content in rows:
        text = content.replace("tester", "nobody") if sequence == 6 else content
        digest = entry_hash(previous, text)
        connection.execute(
            "UPDATE emuflow_audit SET previous_hash=?, hash=?, content=? WHERE sequence=?",
            (previous, digest, text, sequence),
        )
        previous = digest
    connection.execute("UPDATE emuflow_audit_head SET hash=?", (previous,))


def insert(connection: sqlite3.Connection) -> None:
    """A ninth entry that fits the chain."""
    (previous,) = connection.execute("SELECT hash FROM emuflow_audit WHERE sequence = 8").fetchone()
    content = json.dumps({"sequence": 9, "action": "approval", "actor": "Mara", "time": "2026-01-01"})
    connection.execute(
        "INSERT INTO emuflow_audit VALUES (9, ?, ?, ?)", (previous, entry_hash(previous, content), content)
    )


CUT_OFF = ("DELETE FROM emuflow_audit WHERE sequence > 6", "DELETE FROM emuflow_releases WHERE sequence = 3")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (sql("UPDATE emuflow_audit SET content = replace(content, 'tester', 'nobody') WHERE sequence = 6"), ["entry 6"]),
        (sql("DELETE FROM emuflow_audit WHERE sequence = 6"), ["entry 6"]),
        (sql(*CUT_OFF), ["entry 7", "entry 8"]),
        (insert, ["entry 9"]),
        (rewrite, ["entry 8", "the head"]),
        (sql("UPDATE emuflow_audit_head SET signature = NULL"), ["the head"]),
        (sql("UPDATE emuflow_releases SET actor = 'nobody' WHERE stage = 'champion' AND sequence = 2"), ["champion #2"]),
        (sql("DELETE FROM emuflow_releases WHERE stage = 'champion' AND sequence = 3"), ["champion #3"]),
        (
            sql("INSERT INTO emuflow_releases (stage, sequence, digest, actor, reason, time) VALUES ('champion',4,'d','','','')"),
            ["champion #4"],
        ),
    ],
    ids=["altered", "removed", "last ones", "inserted", "rewritten", "unsigned", "release", "no release", "new release"],
)  # fmt: skip
def test_what_was_tampered_with_is_named(database, url, release_keys, change, named):
    assert findings(url, release_keys) == []
    tamper(database, change)
    assert findings(url, release_keys) == named


def test_a_log_that_was_put_back_with_an_earlier_signed_head_is_found_where_it_was_written(database, url, release_keys):
    earlier = database.with_suffix(".backup")
    shutil.copyfile(database, earlier)
    store = ReleaseStore(url, release_keys)
    promote(store, D, C)
    store.close()
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database}{suffix}").unlink(missing_ok=True)
    shutil.copyfile(earlier, database)
    found = verify_audit_log(url, release_keys).findings
    assert [finding.where for finding in found] == ["entry 10"] and "this machine wrote it" in found[0].what
    # What is written since says so: newer heads than the lost one must not make it forgotten.
    store = ReleaseStore(url, release_keys)
    for candidate, champion in ((E, C), ("f" * 64, E), ("9" * 64, "f" * 64)):
        promote(store, candidate, champion)
    told = verify_audit_log(url, release_keys).findings
    assert any("entry 10, which this machine had written, was gone" in finding.what for finding in told)


def test_another_machines_key_must_be_trusted(database, url, release_keys, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    store = ReleaseStore(url, elsewhere)
    elsewhere.mkdir()
    shutil.copyfile(release_keys / "signing.pub", elsewhere / "first.pub")
    promote(store, D, C)
    assert findings(url, release_keys) == ["the head"]
    promote(ReleaseStore(url, release_keys), E, D)
    assert findings(url, release_keys) == ["entry 11"], "it was added to a head that nobody here can check"
    for folder, other in ((release_keys, elsewhere), (elsewhere, release_keys)):
        shutil.copyfile(other / "signing.pub", folder / "other.pub")
    assert findings(url, release_keys) == findings(url, elsewhere) == []


def test_a_promotion_on_a_broken_log_goes_on_and_does_not_cover_it_up(database, url, release_keys):
    tamper(database, sql(*CUT_OFF, "UPDATE emuflow_audit_head SET entries = 6, signature = NULL"))
    store = ReleaseStore(url, release_keys)
    promote(store, D, B)
    store.close()
    (release_keys / "audit").rename(release_keys / "away")  # what this machine remembers would tell, too
    (found,) = verify_audit_log(url, release_keys).findings
    assert found.where == "entry 7" and "the log was not whole when it was written" in found.what


def test_an_emptied_log_is_found_by_the_rows_that_it_told_of(database, url, release_keys):
    (release_keys / "audit").rename(release_keys / "away")
    tamper(database, sql("DROP TABLE emuflow_audit", "DROP TABLE emuflow_audit_head"))
    assert "champion #3" in findings(url, release_keys)

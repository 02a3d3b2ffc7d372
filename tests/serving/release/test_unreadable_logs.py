"""What somebody filled with what no writer of the log would write is a finding, never a crash."""

import pytest

from common.errors import PromotionConflictError
from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log
from tests.serving.release.test_audit import C, D, database, promote, sql, tamper

__all__ = ["database"]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("""replace(content, '"stage"', '"stgae"')""", "what it says of a release row cannot be read"),
        (
            """replace(content, '"release":{', '"release":7,"other":{')""",
            "what it says of a release row cannot be read",
        ),
        (
            """replace(content, '{"action"', '{"found_head":7,"action"')""",
            "what it says of the head before it cannot be read",
        ),
        (
            """replace(content, '{"action"', '{"found_head":{"entries":"x","hash":1,"signature":2},"action"')""",
            "what it says of the head before it cannot be read",
        ),
        (
            """replace(content, '{"action"', '{"releases_before":[],"action"')""",
            "what it says of the releases before it cannot be read",
        ),
        (
            """replace(content, '"actor":"tester"', '"actor":"\\ud800"')""",
            "it was altered: its hash is not that of its content",
        ),
        ("'no JSON'", "its content cannot be read"),
        ("'[]'", "its content cannot be read"),
        ("x'ff'", "its content cannot be read"),
    ],
)
def test_an_entry_that_cannot_be_read_is_named(database, url, release_keys, content, what):
    tamper(database, sql(f"UPDATE emuflow_audit SET content = {content} WHERE sequence = 4"))
    found = verify_audit_log(url, release_keys).findings
    assert {("entry 4", what), ("entry 4", "it was altered: its hash is not that of its content")} <= {
        (each.where, each.what) for each in found
    }
    store = ReleaseStore(url, release_keys)
    promote(store, D, C)  # a log that was tampered with is no reason not to release
    assert store.package_of("generator", "1") is None and store.noted(D, D[::-1]) == {}
    store.close()


@pytest.mark.parametrize(
    ("statement", "where"),
    [
        ("UPDATE emuflow_audit_head SET entries = 'many'", "the head"),
        ("UPDATE emuflow_audit_head SET signature = x'00'", "the head"),
        ("UPDATE emuflow_audit_head SET signature = 'no hexadecimal'", "the head"),
        ("UPDATE emuflow_audit_head SET entries = 1000000000000", "entries 9 to 1000000000000"),
        ("UPDATE emuflow_releases SET reason = x'ff' WHERE stage = 'champion' AND sequence = 2", "champion #2"),
        ("INSERT INTO emuflow_audit SELECT 0, previous_hash, hash, content FROM emuflow_audit WHERE sequence = 1", "entry 0"),
    ],
)  # fmt: skip
def test_a_head_or_a_row_that_no_writer_would_leave_is_named(database, url, release_keys, statement, where):
    tamper(database, sql(statement))
    assert where in {finding.where for finding in verify_audit_log(url, release_keys).findings}


def test_a_conflict_is_told_on_a_log_that_cannot_be_read(database, url, release_keys):
    tamper(database, sql("UPDATE emuflow_audit SET content = 'no JSON'"))
    with pytest.raises(PromotionConflictError):
        promote(ReleaseStore(url, release_keys), D, None)

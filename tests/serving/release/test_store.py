"""The release store: compare-and-swap, stages, rollback, and tables that MLflow does not notice."""

import sqlite3
from pathlib import Path

import pytest

from common.errors import GateError, PromotionConflictError, UsageError
from serving.release.rows import Approval, Release
from serving.release.rules import earlier_champion
from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log

A, B, C, D = "a" * 64, "b" * 64, "c" * 64, "d" * 64


@pytest.fixture
def store(url: str, release_keys: Path) -> ReleaseStore:
    return ReleaseStore(url, release_keys)


def promote(
    store: ReleaseStore, digest: str, expected: str | None, stage: str = "champion", verdict: str = ""
) -> Release:
    return store.promote(
        stage,
        digest,
        expected_current=expected,
        evidence_digest=verdict or digest[::-1],
        actor="tester",
        reason="PASS",
    )


def actions(store: ReleaseStore) -> list[str]:
    return [entry.parsed()["action"] for entry in store.audit_log()]


def test_an_empty_store_has_no_champion_and_no_history(url):
    store = ReleaseStore(url)
    assert store.current("champion") is None
    assert store.history("champion") == [] and store.audit_log() == []


def test_each_promotion_is_a_new_row_that_names_the_one_before(store, url):
    promote(store, A, None)
    promote(store, B, A)
    promote(store, A, B, verdict="e" * 64)  # measured again: a release like any other
    history = ReleaseStore(url).history("champion")
    assert [(r.sequence, r.digest, r.previous_digest) for r in history] == [(3, A, B), (2, B, A), (1, A, None)]
    assert history[0].evidence_digest == "e" * 64 and history[0].actor == "tester" and history[0].reason == "PASS"
    assert (history[0].action, history[0].measured_against) == ("promotion", B)


def test_a_candidate_is_registered_once_for_each_evidence(store):
    for verdict in ("1" * 64, "2" * 64, "1" * 64):
        store.register(A, evidence_digest=verdict, measured_against=None, actor="tester", reason="FAIL")
    assert [row.evidence_digest for row in store.history("candidate")] == ["2" * 64, "1" * 64]
    assert store.current("champion") is None and actions(store) == ["opened", "registration", "registration"]


def test_staging_leaves_the_champion_and_is_passed_on_the_way_to_it(store):
    promote(store, A, None)
    promote(store, B, A, stage="staging")
    assert [row.digest for row in store.history("champion")] == [A]
    promote(store, B, A)  # it stands in staging with this evidence: one row, not two
    assert [row.digest for row in store.history("staging")] == [B, A]
    promote(store, C, B)
    assert [row.digest for row in store.history("staging")] == [C, B, A]
    assert [row.digest for row in store.history("champion")] == [C, B, A]


def test_staging_too_demands_evidence_against_the_champion_of_now(store):
    promote(store, A, None)
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        promote(store, B, None, stage="staging")
    assert [row.digest for row in store.history("staging")] == [A]


@pytest.mark.parametrize("expected", [None, C])
def test_a_promotion_against_another_champion_is_refused_and_the_refusal_recorded(store, expected):
    promote(store, A, None)
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        promote(store, B, expected)
    assert [release.digest for release in store.history("champion")] == [A]
    refusal = store.audit_log()[-1].parsed()
    assert (refusal["action"], refusal["digest"], refusal["actor"]) == ("refusal", B, "tester")
    assert "measured against" in refusal["reason"]


def test_promoting_over_a_champion_that_does_not_exist_is_refused(store):
    with pytest.raises(PromotionConflictError):
        promote(store, B, A)


def test_a_promotion_that_is_done_already_stands(store):
    first = promote(store, A, None)
    assert promote(store, A, None) == first and len(store.history("champion")) == 1


def test_an_approval_is_in_the_row_and_in_the_log(store):
    approval = Approval("Mara", "looks right on the wall")
    release = store.promote(
        "champion", A, expected_current=None, evidence_digest="e" * 64, actor="x", reason="PASS", approval=approval
    )
    assert (release.approved_by, release.approval_reason) == ("Mara", "looks right on the wall")
    assert actions(store) == ["opened", "approval", "promotion", "promotion"]


def test_a_store_without_a_key_is_for_reading(url):
    with pytest.raises(UsageError, match="for reading"):
        promote(ReleaseStore(url), A, None)


def test_a_rollback_is_a_new_row_with_the_old_evidence(store):
    promote(store, A, None)
    promote(store, B, A)
    release = store.roll_back(A, expected_current=B, actor="tester", reason="it draws ghosts")
    assert store.current() == release and (release.action, release.reason) == ("rollback", "it draws ghosts")
    assert release.previous_digest == B and release.evidence_digest == A[::-1] and release.sequence == 3
    assert actions(store)[-1] == "rollback"


def test_a_second_rollback_goes_further_back_and_not_forth_again(store):
    for digest, before in ((A, None), (B, A), (C, B)):
        promote(store, digest, before)
    store.roll_back(B, expected_current=C, actor="x", reason="")
    assert earlier_champion(store.history()) == A
    store.roll_back(A, expected_current=B, actor="x", reason="")
    assert earlier_champion(store.history()) is None
    promote(store, D, A)
    assert earlier_champion(store.history()) == A
    store.roll_back(C, expected_current=D, actor="x", reason="it was the best")  # named, though it was taken back once
    assert earlier_champion(store.history()) == D


def test_nothing_is_rolled_back_to_that_was_not_the_champion(store):
    promote(store, A, None)
    promote(store, B, A, stage="staging")
    with pytest.raises(GateError, match="was not the champion before"):
        store.roll_back(B, expected_current=A, actor="x", reason="")
    assert store.current().digest == A and actions(store)[-1] == "refusal"


def test_a_rollback_that_another_promotion_overtook_is_refused(store):
    for digest, before in ((A, None), (B, A), (C, B)):
        promote(store, digest, before)
    with pytest.raises(PromotionConflictError, match="roll back again"):
        store.roll_back(A, expected_current=B, actor="x", reason="")
    assert store.current().digest == C


def test_what_was_rolled_back_needs_new_evidence(store):
    promote(store, A, None)
    promote(store, B, A)
    store.roll_back(A, expected_current=B, actor="Mara", reason="it draws ghosts")
    with pytest.raises(PromotionConflictError, match="Mara: it draws ghosts"):
        promote(store, B, A)
    assert store.current().digest == A
    assert promote(store, B, A, verdict="f" * 64).digest == B


def test_a_rollback_is_unfinished_until_it_is_told_to_be_complete(store):
    promote(store, A, None)
    promote(store, B, A)
    assert store.unfinished_rollback() is None
    release = store.roll_back(A, expected_current=B, actor="x", reason="")
    assert store.unfinished_rollback() == release
    store.complete_rollback(release, seconds=1.5)
    assert store.unfinished_rollback() is None


def test_of_several_registrations_the_last_one_counts(store):
    """Within the transaction: one that was registered while a promotion was on its way, too."""
    for verdict in ("1" * 64, "2" * 64):
        store.register(A, evidence_digest=verdict, measured_against=None, actor="tester", reason="PASS")
    for stage in ("staging", "champion"):
        with pytest.raises(PromotionConflictError, match="measured again after this evidence"):
            promote(store, A, None, stage=stage, verdict="1" * 64)
        assert store.current(stage) is None and actions(store)[-1] == "refusal"
    assert promote(store, A, None, verdict="2" * 64).digest == A
    store.register(A, evidence_digest="3" * 64, measured_against=None, actor="tester", reason="FAIL")
    assert promote(store, A, None, verdict="2" * 64).digest == A, "what is done already stands"


def test_the_number_of_a_version_is_noted_with_its_promotion(store):
    noted = {"model": "generator", "version": "7"}
    store.register(A, evidence_digest="1" * 64, measured_against=None, actor="x", reason="PASS", noted={"policy": {}})
    store.promote("champion", A, expected_current=None, evidence_digest="1" * 64, actor="x", reason="PASS", noted=noted)
    assert store.package_of("generator", "7") == A and store.package_of("generator", "8") is None
    assert store.noted(A, "1" * 64) == {"policy": {}}


def older_database(file: Path) -> None:
    """As the version before the audit log left it: one table, two champions."""
    file.parent.mkdir(parents=True)
    with sqlite3.connect(file) as connection:
        connection.execute(
            "CREATE TABLE emuflow_releases (stage VARCHAR(64) NOT NULL, sequence INTEGER NOT NULL, digest VARCHAR(64) NOT "
            "NULL, previous_digest VARCHAR(64), evidence_digest VARCHAR(64), actor VARCHAR(255) NOT NULL, reason TEXT NOT "
            "NULL, time VARCHAR(40) NOT NULL, PRIMARY KEY (stage, sequence))"
        )
        for row in (("champion", 1, A, None, "1" * 64), ("champion", 2, B, A, "2" * 64)):
            connection.execute("INSERT INTO emuflow_releases VALUES (?,?,?,?,?,'x','PASS','2026-01-01')", row)


def test_a_database_from_before_the_audit_log_is_taken_over(url, release_keys, tmp_path):
    older_database(tmp_path / "mlflow" / "mlflow.db")
    assert verify_audit_log(url, release_keys).older == ("champion #1", "champion #2")
    store = ReleaseStore(url, release_keys)
    assert store.current().digest == B and store.current().action is None
    promote(store, C, B)
    store.roll_back(A, expected_current=C, actor="x", reason="")
    found = verify_audit_log(url, release_keys)
    assert found.older == ("champion #1", "champion #2") and found.findings == ()
    with sqlite3.connect(tmp_path / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE emuflow_releases SET digest = ? WHERE sequence = 1 AND stage = 'champion'", (D,))
    assert [finding.where for finding in verify_audit_log(url, release_keys).findings] == ["champion #1"]


@pytest.mark.parametrize("store_first", [True, False])
def test_the_tables_share_mlflows_database_without_disturbing_it(url, release_keys, tmp_path, store_first):
    from mlflow import MlflowClient
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version
    from sqlalchemy import create_engine

    if store_first:
        promote(ReleaseStore(url, release_keys), A, None)
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    store = ReleaseStore(url, release_keys)
    promote(store, B, A if store_first else None)
    client.log_metric(run.info.run_id, "accuracy", 0.9)
    assert client.get_run(run.info.run_id).data.metrics == {"accuracy": 0.9}
    assert _get_schema_version(create_engine(url)) == _get_latest_schema_revision()
    champion = store.current("champion")
    assert champion and champion.digest == B

"""The release store: compare-and-swap, an audit trail, and a table that MLflow does not notice."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from common.errors import PromotionConflictError
from serving.release.store import ReleaseStore

A, B, C = "a" * 64, "b" * 64, "c" * 64


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}"


def promote(store: ReleaseStore, digest: str, expected: str | None):
    return store.promote(
        "champion", digest, expected_current=expected, evidence_digest="e" * 64, actor="tester", reason="PASS"
    )


def test_an_empty_store_has_no_champion_and_no_history(url):
    store = ReleaseStore(url)
    assert store.current("champion") is None
    assert store.history("champion") == []


def test_each_promotion_is_a_new_row_that_names_the_one_before(url):
    store = ReleaseStore(url)
    promote(store, A, None)
    promote(store, B, A)
    promote(store, A, B)  # back to an earlier package: a release like any other
    history = ReleaseStore(url).history("champion")
    assert [(r.sequence, r.digest, r.previous_digest) for r in history] == [(3, A, B), (2, B, A), (1, A, None)]
    assert history[0].evidence_digest == "e" * 64 and history[0].actor == "tester" and history[0].reason == "PASS"


def test_stages_are_independent(url):
    store = ReleaseStore(url)
    promote(store, A, None)
    store.promote("staging", B, expected_current=None, evidence_digest=None, actor="tester", reason="try it")
    champion, staging = store.current("champion"), store.current("staging")
    assert champion and staging and (champion.digest, staging.digest) == (A, B)


@pytest.mark.parametrize("expected", [None, C])
def test_a_promotion_against_another_champion_is_refused_and_leaves_nothing(url, expected):
    store = ReleaseStore(url)
    promote(store, A, None)
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        promote(store, B, expected)
    assert [release.digest for release in store.history("champion")] == [A]


def test_promoting_over_a_champion_that_does_not_exist_is_refused(url):
    with pytest.raises(PromotionConflictError):
        promote(ReleaseStore(url), B, A)


def _race(url: str, digest: str, start) -> bool:
    store = ReleaseStore(url)
    start.wait(20)
    try:
        promote(store, digest, A)
    except PromotionConflictError:
        return False
    return True


def test_of_concurrent_processes_exactly_one_wins(url):
    store = ReleaseStore(url)
    promote(store, A, None)
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(4, mp_context=context) as pool:
        start = manager.Barrier(4)
        digests = [f"{i:064x}" for i in range(4)]
        futures = [pool.submit(_race, url, digest, start) for digest in digests]
        won = [future.result(timeout=60) for future in futures]
    assert sum(won) == 1
    history = store.history("champion")
    assert len(history) == 2 and history[0].digest == digests[won.index(True)]


@pytest.mark.parametrize("store_first", [True, False])
def test_the_table_shares_mlflows_database_without_disturbing_it(url, tmp_path, store_first):
    from mlflow import MlflowClient
    from mlflow.store.db.utils import _get_latest_schema_revision, _get_schema_version
    from sqlalchemy import create_engine

    if store_first:
        promote(ReleaseStore(url), A, None)
    client = MlflowClient(tracking_uri=url, registry_uri=url)
    experiment = client.create_experiment("e", artifact_location=(tmp_path / "artifacts").as_uri())
    run = client.create_run(experiment)
    store = ReleaseStore(url)
    promote(store, B, A if store_first else None)
    client.log_metric(run.info.run_id, "accuracy", 0.9)
    assert client.get_run(run.info.run_id).data.metrics == {"accuracy": 0.9}
    assert _get_schema_version(create_engine(url)) == _get_latest_schema_revision()
    champion = store.current("champion")
    assert champion and champion.digest == B

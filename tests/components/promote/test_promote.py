"""Promotion with a real MLflow store, a real release store and real signed packages."""

import queue
import shutil
import threading
import traceback

import pytest

from common.errors import DigestMismatchError, GateError, PromotionConflictError, SignatureError, TrackingError
from components.promote.registry import Registry
from emuflow_client import GeneratorClient
from serving.supervisor import serve
from tests.components.promote.place import SETTINGS

PASSWORD = "hunter2"


def test_a_pass_becomes_the_champion_with_its_evidence_on_record(place):
    candidate = place.candidate("run-1").judged()
    result = candidate.promoted()
    assert result.promoted and result.champion == candidate.int8 == place.champion
    assert result.server == "not running"
    release = place.store.history()[0]
    assert release.previous_digest is None and release.actor == "tester" and release.reason.startswith("PASS")
    version = place.version(result.version)
    assert version.tags["package_digest"] == candidate.int8
    assert version.tags["verdict"] == "PASS" and version.tags["measured_against"] == "none"
    assert version.tags["evidence_digest"] == release.evidence_digest
    assert version.tags["git_commit"] == "0" * 40 and version.tags["data_digest"] == "1" * 64
    assert place.alias() == result.version
    logged = {f.path for name in ("evidence", "package") for f in place.client.list_artifacts(place.run_id, name)}
    assert logged == {"evidence/verdict.json", "evidence/report.html", "package/manifest.json", "package/manifest.sig"}


def test_a_fail_is_registered_with_its_reasons_and_changes_nothing(place):
    first = place.candidate("run-1").judged()
    version_of_first = first.promoted().version
    worse = place.candidate("run-2").judged(accuracy=0.5, champion=first.int8)
    result = worse.promoted()
    assert not result.promoted and result.verdict == "FAIL" and result.champion == first.int8
    assert place.champion == first.int8 and len(place.store.history()) == 1
    version = place.version(result.version)
    assert "accuracy_int8" in version.tags["reasons"] and version.tags["measured_against"] == first.int8
    assert place.alias() == version_of_first


@pytest.mark.parametrize("changes", [{"status": "INVALID", "reasons": ["not warmed up"]}, {"tokenizer_ssim": None}])
def test_fault_18_no_champion_is_made_of_what_did_not_pass(place, changes):
    result = place.candidate("run-1").judged(**changes).promoted()
    assert not result.promoted and result.champion is None and place.champion is None and place.alias() is None


def test_the_second_champion_replaces_the_first(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    result = second.promoted()
    assert result.promoted and place.champion == second.int8
    assert place.store.history()[0].previous_digest == first.int8
    assert place.alias() == result.version


def test_fault_19_the_second_of_two_promotions_against_one_champion_is_refused(place):
    one, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    one.promoted()
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        other.promoted()
    assert place.champion == one.int8
    found = place.client.search_model_versions(f"tags.package_digest = '{other.int8}'")
    assert [version.tags["promotion"] for version in found] == ["refused"]


def test_running_a_promotion_again_changes_nothing_more(place):
    candidate = place.candidate("run-1").judged()
    first = candidate.promoted()
    again = candidate.promoted()
    assert again == first and len(place.store.history()) == 1


def test_an_alias_that_a_crash_left_behind_is_repaired_by_the_next_promotion(place):
    first = place.candidate("run-1").judged()
    result = first.promoted()
    place.client.delete_registered_model_alias(SETTINGS.registered_model, "champion")
    place.candidate("run-2").judged(accuracy=0.5, champion=first.int8).promoted()
    assert place.alias() == result.version


def test_fault_21_without_the_tracking_server_nothing_is_promoted(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = place.candidate("run-1").judged()
    with pytest.raises(TrackingError, match="nothing was promoted"):
        candidate.promoted(tracking_uri="http://127.0.0.1:9")
    assert place.champion is None
    assert candidate.promoted().promoted  # it is back: the same step succeeds


def test_fault_25_an_error_of_the_tracking_server_shows_no_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError) as caught:
        Registry("generator", f"http://team:{PASSWORD}@127.0.0.1:9/mlflow").version_of("champion")
    assert PASSWORD in str(caught.value.__context__)  # MLflow's own message
    shown = "".join(traceback.format_exception(caught.value))
    assert "team:***@127.0.0.1" in shown and PASSWORD not in shown


def test_a_candidate_alias_that_a_crash_left_behind_is_repaired_by_the_next_call(place):
    def alias() -> str | None:
        return Registry(SETTINGS.registered_model, place.url).version_of("candidate")

    first = place.candidate("run-1").judged(accuracy=0.5)
    assert alias() is None and first.promoted().version == "1"
    place.client.delete_registered_model_alias(SETTINGS.registered_model, "candidate")
    assert first.promoted().version == alias() == "1"
    second = place.candidate("run-2").judged(accuracy=0.5)
    assert second.promoted().version == alias() == "2"
    assert first.promoted().version == "1" and alias() == "2"  # an older one again is not the newest


def test_a_verdict_about_another_package_is_refused(place):
    judged, other = place.candidate("run-1").judged(), place.candidate("run-2")
    shutil.copytree(judged.folder / "verdict", other.folder / "verdict")
    with pytest.raises(GateError, match="was exported"):
        other.promoted()
    assert place.champion is None


def test_without_a_verdict_nothing_is_promoted(place):
    with pytest.raises(GateError, match="there is no verdict"):
        place.candidate("run-1").promoted()


def test_a_package_that_was_altered_after_its_verdict_is_refused(place):
    candidate = place.candidate("run-1").judged()
    weights = place.root / "packages" / candidate.int8 / "1" / "engine" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])
    with pytest.raises(SignatureError):
        candidate.promoted()
    assert place.champion is None and not place.client.search_model_versions("")


def test_an_evaluation_set_that_the_training_did_not_hold_out_is_refused(place):
    with pytest.raises(DigestMismatchError, match="held out"):
        place.candidate("run-1").judged(evaluation_digest="9" * 64).promoted()


def test_a_running_server_serves_the_new_champion(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    stop, told = threading.Event(), queue.Queue()
    serving = threading.Thread(
        target=serve,
        kwargs={
            "folder": place.root / "serving",
            "package_store": place.root / "packages",
            "key_folder": place.root / "keys",
            "desired": lambda: first.int8,
            "stop": stop,
            "poll_s": 60.0,  # it does not look by itself: the promotion must tell it
            "on_change": told.put,
        },
    )
    serving.start()
    try:
        state = told.get(timeout=60)
        second = place.candidate("run-2").judged(champion=first.int8)
        assert second.promoted().server == "updated"
        with GeneratorClient(state.grpc_endpoint) as client:
            assert client.generate("a yellow eight", seed=1).version == second.int8
    finally:
        stop.set()
        serving.join(60)

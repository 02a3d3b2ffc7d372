"""A candidate that is registered more than once, each time with the evidence of another measurement."""

import shutil

import pytest

from common.errors import GateError, PromotionConflictError, TrackingError
from tests.components.promote.moves import UNREACHABLE, moved
from tests.components.promote.place import Candidate


def test_what_is_only_to_be_registered_goes_on_by_hand(place):
    candidate = place.candidate("run-1").judged()
    result = candidate.promoted(to="candidate", approval="person")
    assert (result.stage, result.promoted, result.champion) == ("candidate", False, None)
    assert place.actions() == ["opened", "registration"] and place.store.current("staging") is None
    with pytest.raises(GateError, match="--approve-by NAME --why TEXT"):
        moved(candidate, "champion")
    assert moved(candidate, "staging").release.digest == candidate.int8


def test_a_fail_that_was_only_to_be_registered_refuses_nothing(place):
    place.candidate("run-1").judged(accuracy=0.5).promoted(to="candidate")
    assert place.actions() == ["opened", "registration"]


def test_of_several_measurements_the_last_one_counts_and_all_are_kept(place):
    candidate = place.candidate("run-1").judged()
    candidate.promoted(to="candidate")
    shutil.copytree(candidate.folder / "verdict", candidate.folder / "first")
    candidate.judged(accuracy=0.5).promoted(to="candidate")
    with pytest.raises(GateError, match="FAIL, not PASS"):
        moved(candidate, "champion")
    shutil.rmtree(candidate.folder / "verdict")
    (candidate.folder / "first").rename(candidate.folder / "verdict")
    with pytest.raises(GateError, match=f"(?s)measured again after .*emuflow measure {candidate.int8[:12]}"):
        moved(candidate, "champion")
    assert place.champion is None
    rows = place.store.history("candidate")
    assert [row.reason.split(":")[0] for row in rows] == ["FAIL", "PASS"]
    assert [place.version(number).tags["verdict"] for number in ("1", "2")] == ["PASS", "FAIL"]
    assert candidate.judged().promoted().stage == "champion"


def put_back(candidate: Candidate, kept: str) -> None:
    """An earlier verdict, in the place of the last one."""
    shutil.rmtree(candidate.folder / "verdict")
    shutil.copytree(candidate.folder / kept, candidate.folder / "verdict")


def test_fault_21_a_fail_that_mlflow_did_not_take_is_the_last_word_all_the_same(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = place.candidate("run-1").judged()
    candidate.promoted(to="candidate")
    shutil.copytree(candidate.folder / "verdict", candidate.folder / "passed")
    candidate.judged(accuracy=0.5)
    with pytest.raises(TrackingError, match="nothing was promoted"):
        candidate.promoted(tracking_uri=UNREACHABLE)
    assert [row.reason.split(":")[0] for row in place.store.history("candidate")] == ["FAIL", "PASS"]
    with pytest.raises(GateError, match="FAIL, not PASS"):
        moved(candidate, "champion")
    put_back(candidate, "passed")
    with pytest.raises(GateError, match="measured again after"):
        moved(candidate, "champion")
    with pytest.raises(PromotionConflictError, match="measured again after this evidence"):
        candidate.promoted()  # nor by the step of its own run, once more
    assert place.champion is None and place.store.current("staging") is None


def test_fault_21_a_pass_that_mlflow_did_not_take_is_promoted_once_it_did(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    candidate = place.candidate("run-1").judged()
    with pytest.raises(TrackingError, match="nothing was promoted"):
        candidate.promoted(tracking_uri=UNREACHABLE)
    with pytest.raises(GateError, match="MLflow has no version"):
        moved(candidate, "champion")
    assert place.champion is None and candidate.promoted().champion == candidate.int8
    assert place.store.package_of("emuflow-generator", "1") == candidate.int8


def test_fault_20_a_verdict_that_was_never_registered_is_not_passed_over(place):
    """The measurement was killed before its promotion: only its folder tells of it."""
    candidate = place.candidate("run-1").judged()
    candidate.promoted(to="candidate")
    again = Candidate(place, place.home.run("run-2"), candidate.int8, candidate.fp32).judged(accuracy=0.5)
    folders = [each.folder / "verdict" for each in (candidate, again)]
    with pytest.raises(GateError, match=f"(?s)run-2.*never registered.*emuflow measure {candidate.int8[:12]}"):
        moved(candidate, "champion", other_verdicts=folders)
    assert place.champion is None and place.actions()[-1] == "refusal"
    candidate.judged().promoted(to="candidate")
    assert moved(candidate, "champion", other_verdicts=folders).release.digest == candidate.int8


def test_a_later_verdict_against_another_champion_does_not_count_against_this_one(place, champions):
    first, second = champions
    candidate = place.candidate("run-3").judged(champion=second.int8)
    candidate.promoted(to="staging")
    again = Candidate(place, place.home.run("run-4"), candidate.int8, candidate.fp32)
    again.judged(accuracy=0.5, champion=first.int8)
    moved(candidate, "champion", other_verdicts=[again.folder / "verdict"])
    assert place.champion == candidate.int8

"""A candidate that is registered more than once, each time with the evidence of another measurement."""

import shutil

import pytest

from common.errors import GateError
from tests.components.promote.moves import moved


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

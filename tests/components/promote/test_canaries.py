"""What a canary asks for, what it proves, and when it ends: real stores and real signed packages."""

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from common.errors import GateError, UsageError
from components.promote.canary import experiments, start_canary
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import Experiment, Status, canary
from serving.release.experiments.policy import Policy
from serving.release.experiments.states import ExperimentStore
from tests.components.promote.moves import at_the_first_lock, moved, registered_without_policy, rolled_back
from tests.components.promote.place import Candidate, Place


def begun(candidate: Candidate, name: str = "spring") -> Experiment:
    place = candidate.place
    return start_canary(
        None,
        candidate.int8,
        name=name,
        actor="operator",
        reason="spring",
        release_url=place.url,
        experiments_url=place.home.experiments_url,
    ).experiment


def decided(place: Place, status: Status, name: str = "spring") -> None:
    """The canary comes to an end."""
    with experiments(place.home.experiments_url) as states:
        record = states.current(name)
        arm = record.experiment.arm("canary")
        share = 0.0 if status == "stopped" else arm.share
        changed = record.experiment.with_arm(arm.model_copy(update={"status": status, "share": share}))
        states.change(changed, expected_sequence=record.sequence, actor="canary", reason=f"it {status}")


def canary_of(place: Place, name: str = "spring") -> tuple[Status, float, str]:
    with experiments(place.home.experiments_url) as states:
        record = states.current(name)
    arm = record.experiment.arm("canary")
    return arm.status, arm.share, record.reason


def test_a_canary_that_passed_is_asked_for_where_the_policy_wants_one(place):
    first = place.candidate("run-1").judged()
    assert first.promoted(canary="required").stage == "staging"
    moved(first, "champion")  # nothing to compare the first champion with
    second = place.candidate("run-2").judged(champion=first.int8)
    assert second.promoted(canary="required").stage == "staging"
    with pytest.raises(GateError, match="there is none"):
        moved(second, "champion")
    experiment = begun(second)
    assert (experiment.control.digest, experiment.arm("canary").digest) == (first.int8, second.int8)
    with pytest.raises(GateError, match="'spring' is running"):
        moved(second, "champion")
    decided(place, "passed")
    release = moved(second, "champion").release
    assert place.champion == second.int8 and "canary 'spring' (state 2): it passed" in release.reason
    assert place.actions()[-4:] == ["promotion", "refusal", "refusal", "promotion"]
    assert moved(second, "champion").already
    with experiments(place.home.experiments_url) as states:
        ended = states.current("spring")
    assert (ended.experiment.arm("canary").share, ended.reason) == (0, "its package is the champion now")


def test_a_canary_that_was_stopped_or_was_another_package_s_is_no_evidence(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(canary="required")
    begun(second)
    decided(place, "passed")
    decided(place, "stopped")
    with pytest.raises(GateError, match="'spring' is stopped"):
        moved(second, "champion")
    third = place.candidate("run-3").judged(champion=first.int8)
    third.promoted(canary="required")
    begun(third, "summer")
    decided(place, "passed", "summer")
    with pytest.raises(GateError, match="'spring' is stopped"):
        moved(second, "champion")
    assert moved(third, "champion").release.digest == third.int8


def test_a_canary_that_went_by_another_policy_is_no_evidence(place):
    """Made by hand, which nothing forbids."""
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(canary="required")
    lax = canary("lax", control_digest=first.int8, canary_digest=second.int8, policy=Policy(error_margin=0.5))
    with experiments(place.home.experiments_url) as states:
        states.change(lax, expected_sequence=0, actor="operator", reason="in a hurry")
    decided(place, "passed", "lax")
    with pytest.raises(GateError, match="'lax' passed by another policy"):
        moved(second, "champion")
    decided(place, "stopped", "lax")
    assert begun(second).salt != canary("summer", control_digest=first.int8, canary_digest=second.int8).salt
    decided(place, "passed")
    assert moved(second, "champion").release.digest == second.int8


def test_a_canary_begins_only_with_what_stands_in_staging_and_one_at_a_time(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    with pytest.raises(GateError, match="the champion already"):
        begun(first)
    second = place.candidate("run-2").judged(champion=first.int8)
    with pytest.raises(GateError, match="is not in staging"):
        begun(second)
    second.promoted(to="staging")
    begun(second)
    with pytest.raises(UsageError, match="outcomes belong to a name"):
        begun(second)
    with pytest.raises(UsageError, match="'spring' runs"):
        begun(second, "summer")
    decided(place, "stopped")
    assert begun(second, "summer").arm("canary").share > 0


def test_a_canary_goes_by_the_policy_that_was_registered_or_does_not_begin(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging", canary_policy=Policy(error_margin=0.125))
    assert begun(second).policy.error_margin == 0.125
    decided(place, "stopped")
    third = place.candidate("run-3").judged(champion=first.int8)
    registered_without_policy(third)
    moved(third, "staging")
    with pytest.raises(GateError, match="registered without its policy"):
        begun(third, "summer")


def test_a_canary_ends_with_the_champion_that_it_was_compared_with(place, champions):
    first, second = champions
    third = place.candidate("run-3").judged(champion=second.int8)
    third.promoted(to="staging")
    begun(third)
    rolled_back(place)
    replaced = f"was replaced by {first.int8[:12]}"
    status, share, reason = canary_of(place)
    assert (status, share) == ("stopped", 0) and second.int8[:12] in reason and replaced in reason
    fourth = place.candidate("run-4").judged(champion=first.int8)
    fourth.promoted(to="staging")
    begun(fourth, "summer")
    place.candidate("run-5").judged(champion=first.int8).promoted(experiments_url=place.home.experiments_url)
    assert canary_of(place, "summer")[0] == "stopped" and "was replaced by" in canary_of(place, "summer")[2]


def test_of_two_canaries_that_start_at_once_one_begins(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging")
    with experiments(place.home.experiments_url):  # its tables are there
        listener = at_the_first_lock(lambda: begun(second, "spring"))
    try:
        with pytest.raises(UsageError, match="'spring' runs"):
            begun(second, "summer")
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    with experiments(place.home.experiments_url) as states:
        assert [record.experiment.name for record in states.newest()] == ["spring"]


def test_the_newest_verdict_of_a_pair_decides(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(canary="required")
    begun(second)
    decided(place, "passed")
    url = place.home.experiments_url
    states, events = ExperimentStore(url), EventStore(url)
    old = Canary(states, events, "spring")
    old.set_share("canary", 0.0, actor="operator", reason="parked")
    begun(second, "summer")
    with pytest.raises(UsageError, match="'summer' runs"):
        old.set_share("canary", 0.1, actor="operator", reason="both")
    decided(place, "stopped", "summer")
    old.set_share("canary", 0.1, actor="operator", reason="the last change, and no verdict")
    with pytest.raises(GateError, match="'summer' is stopped"):
        moved(second, "champion")
    states.close()
    events.close()

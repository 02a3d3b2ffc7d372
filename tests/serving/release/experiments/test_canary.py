"""The state machine: it grows, stops and passes by the events alone, once, with reasons, whoever looks."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from common.errors import ExperimentConflictError, SettingsError, UsageError
from serving.release.experiments.assignment import HashSplit
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import Experiment, canary
from serving.release.experiments.states import ExperimentStore
from tests.serving.release.experiments.conftest import CANARY, CHAMPION, POLICY
from tests.serving.release.experiments.traffic import failing_canary, requests, slow_canary

LATER = 1e9


def test_a_healthy_canary_climbs_the_ramp_and_passes(states: ExperimentStore, events: EventStore):
    policy = POLICY.model_copy(update={"error_margin": 0.05, "latency_ratio": 1.2})
    made = canary("e", control_digest=CHAMPION, canary_digest=CANARY, salt="fixed-salt", policy=policy)
    states.change(made, expected_sequence=0, actor="tester", reason="start")
    seen = [0.05]
    for hundred in range(80):
        split = HashSplit(states.current("e").experiment)
        users = range(100 * hundred, 100 * (hundred + 1))
        events.write(requests(split, users, start=users.start))
        look = Canary(states, events, "e").look(now=users.stop + 1)
        arm = look.record.experiment.arm("canary")
        if arm.share != seen[-1]:
            seen.append(arm.share)
        if arm.status == "passed":
            break
    assert seen == [0.05, 0.2, 0.5] and arm.status == "passed"
    history = states.history("e")
    assert [record.sequence for record in history] == [4, 3, 2, 1]
    assert "passes" in history[0].reason and "nothing looks bad" in history[2].reason
    assert {found["verdict"] for found in history[0].evidence["canary"] if found["scope"] == "new users"} == {
        "not worse"
    }


@pytest.mark.parametrize("answer", [slow_canary(2.0), failing_canary(0.5)])
def test_fault_24_traffic_leaves_a_failing_arm_by_itself(states, events, experiment, answer):
    events.write(requests(HashSplit(experiment), range(1500), answer=answer))
    look = Canary(states, events, "e").look(now=LATER)
    stopped = look.record.experiment.arm("canary")
    assert look.changed and (stopped.status, stopped.share) == ("stopped", 0.0)
    split = HashSplit(states.current("e").experiment)
    assert {split.assign(f"user-{number}").arm for number in range(500)} == {"champion"}
    record = states.history("e")[0]
    assert record.actor == "canary" and "'canary' is stopped" in record.reason and "margin" in record.reason
    assert any(found["verdict"] == "worse" and found["users"] > 0 for found in record.evidence["canary"])


def test_fault_24_the_others_keep_their_arm(states, events, experiment):
    before = HashSplit(experiment)
    events.write(requests(before, range(1500), answer=failing_canary(0.5)))
    after = HashSplit(Canary(states, events, "e").look(now=LATER).record.experiment)
    moved = [user for user in range(1500) if before.assign(f"user-{user}").arm != after.assign(f"user-{user}").arm]
    assert moved and all(before.assign(f"user-{user}").is_challenger for user in moved)


def test_without_events_everything_goes_on(states, events, experiment):
    look = Canary(states, events, "e").look(now=LATER)
    assert not look.changed and look.record.sequence == 1
    assert look.record.experiment.arm("canary").share == 0.05


def test_a_canary_that_looks_bad_but_is_not_proven_so_stays_where_it_is(states, events, experiment):
    events.write(requests(HashSplit(experiment), range(600), answer=slow_canary(1.15)))
    look = Canary(states, events, "e").look(now=LATER)
    assert not look.changed and not look.evaluations[0].may_grow and not look.evaluations[0].worse


def test_each_step_of_the_ramp_needs_users_of_its_own(states, events, experiment):
    tolerant = experiment.model_copy(update={"policy": POLICY.model_copy(update={"error_margin": 0.1})})
    states.change(tolerant, expected_sequence=1, actor="tester", reason="errors do not matter here")
    events.write(requests(HashSplit(experiment), range(1000)))
    grown = Canary(states, events, "e").look(now=LATER)
    assert grown.changed and grown.record.experiment.arm("canary").share == 0.2
    assert not Canary(states, events, "e").look(now=LATER).changed


def test_one_that_passed_is_still_watched(states, events, experiment):
    arm = experiment.arm("canary").model_copy(update={"status": "passed"})
    states.change(experiment.with_arm(arm), expected_sequence=1, actor="tester", reason="passed")
    events.write(requests(HashSplit(experiment), range(1500), answer=failing_canary(0.5)))
    assert Canary(states, events, "e").look(now=LATER).record.experiment.arm("canary").status == "stopped"


def test_one_that_was_stopped_stays_stopped(states, events, experiment):
    control = Canary(states, events, "e")
    control.stop("canary", actor="anna", reason="a complaint")
    assert states.current("e").reason == "a complaint"
    with pytest.raises(UsageError, match="was stopped"):
        control.set_share("canary", 0.5, actor="anna", reason="try again")
    assert not control.look(now=LATER).changed


def test_a_person_may_change_the_share_within_its_limits(states, events, experiment):
    control = Canary(states, events, "e")
    assert control.set_share("canary", 0.3, actor="anna", reason="faster").experiment.arm("canary").share == 0.3
    with pytest.raises(SettingsError):
        control.set_share("canary", 1.5, actor="anna", reason="all")
    with pytest.raises(UsageError, match="no arm 'canarry'"):
        control.set_share("canarry", 0.1, actor="anna", reason="x")
    assert states.current("e").sequence == 2


def test_of_two_changes_of_one_state_the_second_is_refused(states, experiment):
    states.change(experiment, expected_sequence=1, actor="anna", reason="first")
    with pytest.raises(ExperimentConflictError, match="decide anew"):
        states.change(experiment, expected_sequence=1, actor="otto", reason="second")
    assert [record.actor for record in states.history("e")] == ["anna", "tester"]


def test_an_experiment_that_is_not_there_is_named(states, events):
    with pytest.raises(UsageError, match="no experiment 'f'"):
        Canary(states, events, "f").look()


def _look(url: str, start) -> bool:
    states, events = ExperimentStore(url), EventStore(url)
    start.wait(30)
    return Canary(states, events, "e").look(now=LATER).changed


def test_of_several_processes_that_look_at_once_one_stops_the_arm(url, states, events, experiment: Experiment):
    events.write(requests(HashSplit(experiment), range(1500), answer=failing_canary(0.5)))
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(3, mp_context=context) as pool:
        start = manager.Barrier(3)
        changed = [future.result(timeout=60) for future in [pool.submit(_look, url, start) for _ in range(3)]]
    assert sum(changed) == 1
    assert [record.experiment.arm("canary").status for record in states.history("e")] == ["stopped", "running"]


@pytest.mark.parametrize(
    ("champion", "reason"), [(CANARY, "is the champion now"), ("f" * 64, "was replaced by ffffffffffff")]
)
def test_a_canary_ends_when_its_control_is_no_longer_the_champion(states, events, experiment, champion, reason):
    assert not Canary(states, events, "e", champion=lambda: CHAMPION).look(now=LATER).changed
    look = Canary(states, events, "e", champion=lambda: champion).look(now=LATER)
    assert look.changed and reason in look.record.reason
    assert (look.record.experiment.arm("canary").status, look.record.experiment.arm("canary").share) == ("stopped", 0)
    assert not Canary(states, events, "e", champion=lambda: champion).look(now=LATER).changed

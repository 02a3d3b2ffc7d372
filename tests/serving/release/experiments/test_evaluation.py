"""What outcomes prove: every metric, what is missing, and what does not fit."""

from dataclasses import replace

import numpy as np
import pytest

from serving.release.experiments.assignment import HashSplit
from serving.release.experiments.evaluation import NEW, RETURNING, Evaluation, Finding, estimate, evaluate
from serving.release.experiments.events import Event, EventStore, Outcome
from serving.release.experiments.experiment import Experiment, canary
from serving.release.experiments.policy import Policy
from serving.release.experiments.units import Units
from tests.serving.release.experiments.conftest import CANARY, CHAMPION, POLICY
from tests.serving.release.experiments.traffic import failing_canary, healthy, requests, slow_canary

LATER = 1e9


def an_experiment(**policy) -> Experiment:
    made = POLICY.model_copy(update={"ramp": (0.5,), **policy})
    return canary("e", control_digest=CHAMPION, canary_digest=CANARY, salt="fixed-salt", policy=made)


def judged(events: EventStore, experiment: Experiment, outcomes: list[Event], now: float = LATER) -> Evaluation:
    events.write(outcomes)
    return evaluate(events, experiment, experiment.arm("canary"), now)


def finding(evaluation: Evaluation, metric: str, scope: str = NEW) -> Finding:
    (found,) = [each for each in evaluation.findings if (each.metric, each.scope) == (metric, scope)]
    return found


def test_equal_arms_are_proven_not_worse(events):
    experiment = an_experiment(error_margin=0.05, latency_ratio=1.2)
    found = judged(events, experiment, requests(HashSplit(experiment), range(3000)))
    assert found.passes and found.may_grow and not found.worse
    latency = finding(found, "latency_ratio")
    assert latency.verdict == "not worse" and latency.low is not None and latency.high is not None
    assert latency.low < 1 < latency.high < 1.2
    assert latency.users + latency.control_users == 3000


@pytest.mark.parametrize(
    ("answer", "metric"),
    [(slow_canary(1.5), "latency_ratio"), (slow_canary(1.5), "slow_share"), (failing_canary(0.2), "error_rate")],
)
def test_a_worse_arm_is_found_by_its_metric(events, answer, metric):
    experiment = an_experiment(slow_ms=30.0, slow_margin=0.05)
    found = judged(events, experiment, requests(HashSplit(experiment), range(1500), answer=answer))
    worse = finding(found, metric)
    assert worse.verdict == "worse" and worse.low is not None and worse.low > worse.margin
    assert not found.passes and not found.may_grow
    assert metric in str(worse) and "worse" in str(worse)


def test_bad_votes_are_found(events):
    experiment = an_experiment(vote_margin=0.05)
    found = judged(events, experiment, requests(HashSplit(experiment), range(1500), bad_votes=(0.1, 0.4)))
    assert [each.metric for each in found.worse] == ["bad_vote_share"]


def test_a_request_that_fails_at_once_is_not_a_fast_one(events):
    experiment = an_experiment(error_margin=0.9)

    def fails_fast(assignment, rng):
        latency_ms, error = healthy(assignment, rng)
        return (1.0, "ServerFault") if assignment.is_challenger and rng.random() < 0.3 else (latency_ms, error)

    found = judged(events, experiment, requests(HashSplit(experiment), range(2000), answer=fails_fast))
    assert finding(found, "latency_ratio").verdict == "worse"


def test_fault_18_what_nobody_measured_is_missing_and_lets_nothing_pass(events):
    experiment = an_experiment(error_margin=0.05, latency_ratio=1.2, vote_margin=0.2)
    found = judged(events, experiment, requests(HashSplit(experiment), range(3000)))
    votes = finding(found, "bad_vote_share")
    assert (votes.verdict, votes.effect, votes.users) == ("missing", None, 0)
    assert not found.passes and not found.may_grow


def test_no_outcomes_at_all_are_no_reason_for_anything(events):
    found = judged(events, an_experiment(), [])
    assert {each.verdict for each in found.findings} == {"missing"}
    assert not (found.passes or found.may_grow or found.worse)


def test_few_users_never_pass(events):
    experiment = an_experiment(min_users=400, error_margin=0.5, latency_ratio=3.0)
    some, all_of_them = requests(HashSplit(experiment), range(700)), requests(HashSplit(experiment), range(700, 1000))
    assert finding(judged(events, experiment, some), "latency_ratio").verdict == "missing"
    assert finding(judged(events, experiment, all_of_them), "latency_ratio").verdict == "not worse"


def test_a_tiny_share_gives_no_impossible_effect(events):
    """One user in 10,000 on the canary: the raw estimate of their effect is a logarithm of thousands."""
    experiment = an_experiment(ramp=(0.0001,))
    on_champion, other = (HashSplit(experiment).assign(f"user-{user}") for user in range(2))
    on_canary = replace(on_champion, arm="canary", package_digest=CANARY)
    found = judged(events, experiment, [Outcome(other, "1", 1.0, 20.0), Outcome(on_canary, "2", 2.0, 100.0)])
    latency = finding(found, "latency_ratio")
    assert latency.effect == pytest.approx(16) and latency.high == pytest.approx(16, rel=0.01)
    assert not found.worse


def test_outcomes_that_are_lost_on_one_arm_are_noticed(events):
    """A canary whose requests vanish would look as good as those that are left."""
    experiment = an_experiment(error_margin=0.05, latency_ratio=1.2)
    outcomes = requests(HashSplit(experiment), range(3000))
    rng = np.random.default_rng(0)
    kept = [each for each in outcomes if not each.assignment.is_challenger or rng.random() < 0.7]
    found = judged(events, experiment, kept)
    assert not found.assignment_fits and not found.passes and not found.may_grow


def test_what_another_package_answered_is_left_out_and_counted(events):
    experiment = an_experiment()
    outcomes = requests(HashSplit(experiment), range(100))
    foreign = [replace(each, assignment=replace(each.assignment, package_digest="f" * 64)) for each in outcomes[:40]]
    found = judged(events, experiment, [*foreign, *outcomes[40:]])
    assert found.foreign_events == 40
    assert finding(found, "error_rate").users + finding(found, "error_rate").control_users == 60


def test_looking_early_changes_nothing_of_what_is_found_later(events):
    experiment = an_experiment()
    outcomes = requests(HashSplit(experiment), range(800), answer=slow_canary(1.3))
    for looked in range(100, 800, 100):
        judged(events, experiment, outcomes[looked - 100 : looked], now=looked)
    last = judged(events, experiment, outcomes[700:])
    fresh = EventStore("sqlite://")
    fresh.write(outcomes)
    assert evaluate(fresh, experiment, experiment.arm("canary"), LATER) == last


def visits(experiment: Experiment, hours: range, fails_from: int | None) -> list[Event]:
    """120 users who come every two hours; on the challenger a third of the requests fail from an hour on."""
    split, events = HashSplit(experiment), []
    for hour in hours:
        for user in range(120):
            assignment = split.assign(f"user-{user}")
            rng = np.random.default_rng([hour, user])
            latency_ms, error = healthy(assignment, rng)
            latency_ms *= 1 + user / 60  # one user's requests are always slower than another's
            if fails_from is not None and hour >= fails_from and assignment.is_challenger and rng.random() < 0.33:
                error = "ServerFault"
            events.append(Outcome(assignment, f"{hour}-{user}", 7200.0 * hour + user, latency_ms, error))
    return events


def test_fault_24_an_arm_that_fails_when_all_users_are_known_is_found(events):
    experiment = an_experiment()
    before = judged(events, experiment, visits(experiment, range(10), fails_from=None))
    assert not before.worse and finding(before, "error_rate").users < 120
    after = judged(events, experiment, visits(experiment, range(10, 16), fails_from=10))
    assert finding(after, "error_rate", RETURNING).verdict == "worse"
    assert finding(after, "error_rate", NEW).verdict != "worse"


@pytest.mark.parametrize("metric", ["error_rate", "latency_ratio"])
def test_what_is_constant_in_a_user_is_no_effect_on_those_who_return(metric):
    visitors, rounds = 10, 3
    user = np.tile(np.arange(visitors), rounds)
    previous = np.arange(visitors * rounds) - visitors
    half = np.full(len(user), 0.5)
    units = Units(user % 2 == 0, half, half, np.maximum(previous, -1), np.arange(len(user)))
    values = user / visitors
    assert (estimate(metric, RETURNING, units, values).estimates == 0).all()
    changed = values + 0.05 * (units.is_challenger & (np.arange(len(user)) >= 2 * visitors))
    assert estimate(metric, RETURNING, units, changed).mean > 0
    assert len(estimate(metric, NEW, units, values)) == visitors - 1


def test_users_who_differ_and_come_again_and_again_are_no_fault(events):
    experiment = an_experiment(error_margin=0.0, latency_ratio=1.0)
    found = judged(events, experiment, visits(experiment, range(30), fails_from=None))
    assert not found.worse


@pytest.mark.parametrize(
    "wrong",
    [
        {"slow_ms": 10.0},
        {"error_margin": None, "latency_ratio": None},
        {"ramp": (0.5, 0.2)},
        {"ramp": (0.5, 1.0)},
        {"alpha": 0.0},
        {"error_marjin": 0.1},
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError):
        Policy(**wrong)

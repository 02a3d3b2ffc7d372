"""Whole canaries without a difference, from the first user to the last: split, event store, ramp and state machine."""

import numpy as np

from benchmarks.experiment_traffic import ERROR_RATE, LATENCY_SPREAD, MEDIAN_MS
from serving.release.experiments.assignment import HashSplit
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore, Outcome
from serving.release.experiments.experiment import Experiment, canary
from serving.release.experiments.policy import Policy
from serving.release.experiments.states import ExperimentStore

POLICY = Policy(error_margin=0.0, latency_ratio=1.0, window_s=0, settle_s=0)
"""Margins of 0, where false stops are likeliest."""


def whole_canary(seed: int, users: int, looks: int) -> tuple[bool, int]:
    """Whether a canary that is not worse was stopped, and how many steps of the ramp it took.

    A user asks once a second, one in four of them again later, when an hour has passed.
    """
    rng = np.random.default_rng([3, seed])
    states, events = ExperimentStore("sqlite://"), EventStore("sqlite://")
    made = canary("e", control_digest="a" * 64, canary_digest="b" * 64, salt=f"salt-{seed:08}", policy=POLICY)
    experiment = states.change(made, expected_sequence=0, actor="benchmark", reason="start").experiment
    control, each = Canary(states, events, "e"), users // looks
    for look in range(looks):
        now = 4000.0 * look
        events.write([_outcome(experiment, rng, look * each + number, now + number) for number in range(each)])
        experiment = control.look(now + each).record.experiment
    arm = experiment.arm("canary")
    states.close()
    events.close()
    return arm.status == "stopped", arm.step


def _outcome(experiment: Experiment, rng: np.random.Generator, number: int, time: float) -> Outcome:
    user = number if rng.random() < 0.75 else rng.integers(0, number + 1)
    own = np.random.default_rng([5, user]).normal(0, LATENCY_SPREAD)  # one user's requests are alike
    latency_ms = MEDIAN_MS * np.exp(own + rng.normal(0, LATENCY_SPREAD))
    error = "ServerFault" if rng.random() < ERROR_RATE else None
    return Outcome(HashSplit(experiment).assign(f"user-{user}"), f"{number}", time, float(latency_ms), error)

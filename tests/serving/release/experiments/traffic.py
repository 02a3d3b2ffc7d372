"""Simulated users of an experiment, as events: what each arm makes of their requests."""

from collections.abc import Callable

import numpy as np

from serving.release.experiments.assignment import Assignment, Split
from serving.release.experiments.events import Event, Outcome, Vote

Fault = Callable[[Assignment, np.random.Generator], tuple[float, str | None]]


def healthy(_: Assignment, rng: np.random.Generator) -> tuple[float, str | None]:
    """Latency in milliseconds, and the error: one in a hundred."""
    return float(20 * np.exp(rng.normal(0, 0.25))), "ServerFault" if rng.random() < 0.01 else None


def slow_canary(ratio: float) -> Fault:
    def answer(assignment: Assignment, rng: np.random.Generator) -> tuple[float, str | None]:
        latency_ms, error = healthy(assignment, rng)
        return latency_ms * (ratio if assignment.is_challenger else 1.0), error

    return answer


def failing_canary(rate: float) -> Fault:
    def answer(assignment: Assignment, rng: np.random.Generator) -> tuple[float, str | None]:
        latency_ms, error = healthy(assignment, rng)
        return latency_ms, "ServerFault" if assignment.is_challenger and rng.random() < rate else error

    return answer


def requests(
    split: Split,
    users: range,
    *,
    answer: Fault = healthy,
    start: float = 0.0,
    bad_votes: tuple[float, float] | None = None,
) -> list[Event]:
    """One request a user, one user a second from `start` on; `bad_votes`: shares on the control and on the challenger."""
    events: list[Event] = []
    for number, user in enumerate(users):
        rng = np.random.default_rng([7, user])
        assignment = split.assign(f"user-{user}")
        latency_ms, error = answer(assignment, rng)
        events.append(Outcome(assignment, f"response-{user}", start + number, latency_ms, error))
        if bad_votes is not None and error is None:
            vote = -1 if rng.random() < bad_votes[assignment.is_challenger] else 1
            events.append(Vote(assignment, f"response-{user}", start + number, vote))
    return events

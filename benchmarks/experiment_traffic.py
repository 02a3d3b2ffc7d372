"""Simulated users of an A/B test: who gets which arm, and what becomes of their requests."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from serving.release.experiments.units import Units

ERROR_RATE, MEDIAN_MS, LATENCY_SPREAD, BAD_VOTE_RATE = 0.01, 20.0, 0.25, 0.1
"""Of the control; the spread is the standard deviation of the logarithm."""
RAMP = (0.05, 0.2, 0.5)
METRICS = ("error_rate", "latency_ratio", "bad_vote_share")


@dataclass(frozen=True)
class Traffic:
    """The users of one test in the order of their coming, and their `values` [units] by metric."""

    units: Units
    values: dict[str, np.ndarray]
    requests: np.ndarray | None = None
    """[units, requests] of logarithms of milliseconds, where a user asks more than once."""


@dataclass(frozen=True)
class Arm:
    """How the challenger differs from the control, from the user number `since` on."""

    error_rate: float = ERROR_RATE
    latency_ratio: float = 1.0
    bad_vote_rate: float = BAD_VOTE_RATE
    since: int = 0


Simulation = Callable[[np.random.Generator], Traffic]


@dataclass(frozen=True)
class NewUsers:
    """Users who come once, with one request each."""

    users: int
    share: float = 0.5
    arm: Arm = field(default_factory=Arm)

    def __call__(self, rng: np.random.Generator) -> Traffic:
        probability = np.full(self.users, self.share)
        treated = rng.random(self.users) < probability
        worse = treated & (np.arange(self.users) >= self.arm.since)
        return Traffic(_new(treated, probability), _values(rng, worse, self.arm))


@dataclass(frozen=True)
class Ramp:
    """No difference, a ramp of shares, and a day on which all arms become slower and fail more as it goes on."""

    users: int

    def __call__(self, rng: np.random.Generator) -> Traffic:
        progress = np.arange(self.users) / self.users
        probability = np.choose((progress * len(RAMP)).astype(int), RAMP)
        treated = rng.random(self.users) < probability
        values = {
            "error_rate": (rng.random(self.users) < ERROR_RATE * (1 + 4 * progress)).astype(float),
            "latency_ratio": _latency(rng, self.users) + np.log(2) * progress,
            "bad_vote_share": (rng.random(self.users) < BAD_VOTE_RATE * (1 + progress)).astype(float),
        }
        return Traffic(_new(treated, probability), values)


@dataclass(frozen=True)
class UnlikeUsers:
    """No difference; each user asks `requests` times, and one user's requests are more alike than two users'."""

    users: int
    requests: int = 10
    spread: float = 0.3

    def __call__(self, rng: np.random.Generator) -> Traffic:
        probability = np.full(self.users, 0.5)
        treated = rng.random(self.users) < probability
        own = rng.normal(0, self.spread, (self.users, 1))
        requests = _latency(rng, (self.users, self.requests)) + own
        rates = rng.beta(0.1, 0.1 / ERROR_RATE - 0.1, self.users)
        votes = rng.beta(0.5, 0.5 / BAD_VOTE_RATE - 0.5, self.users)
        values = {
            "error_rate": rng.binomial(self.requests, rates) / self.requests,
            "latency_ratio": requests.mean(axis=1),
            "bad_vote_share": rng.binomial(self.requests, votes) / self.requests,
        }
        return Traffic(_new(treated, probability), values, requests)


@dataclass(frozen=True)
class ReturningUsers:
    """`users` who differ from each other come again and again, on their arm; it may become another one meanwhile."""

    users: int
    visits: int
    share: float = 0.2
    spread: float = 0.3
    arm: Arm = field(default_factory=Arm)

    def __call__(self, rng: np.random.Generator) -> Traffic:
        count = self.users * self.visits
        who = rng.permuted(np.tile(np.arange(self.users), (self.visits, 1)), axis=1).ravel()
        treated = (rng.random(self.users) < self.share)[who]
        worse = treated & (np.arange(count) >= self.arm.since)
        values = _values(rng, worse, self.arm)
        values["latency_ratio"] += rng.normal(0, self.spread, self.users)[who]
        before = np.full(self.users, -1)
        previous = np.empty(count, dtype=int)
        for unit, user in enumerate(who):
            previous[unit], before[user] = before[user], unit
        probability = np.full(count, self.share)
        return Traffic(Units(treated, probability, probability, previous, np.arange(count)), values)


def _values(rng: np.random.Generator, worse: np.ndarray, arm: Arm) -> dict[str, np.ndarray]:
    count = len(worse)
    return {
        "error_rate": (rng.random(count) < np.where(worse, arm.error_rate, ERROR_RATE)).astype(float),
        "latency_ratio": _latency(rng, count) + np.where(worse, np.log(arm.latency_ratio), 0.0),
        "bad_vote_share": (rng.random(count) < np.where(worse, arm.bad_vote_rate, BAD_VOTE_RATE)).astype(float),
    }


def _latency(rng: np.random.Generator, size: int | tuple[int, int]) -> np.ndarray:
    return rng.normal(np.log(MEDIAN_MS), LATENCY_SPREAD, size)


def _new(treated: np.ndarray, probability: np.ndarray) -> Units:
    count = len(treated)
    return Units(treated, probability, probability, np.full(count, -1), np.arange(count))

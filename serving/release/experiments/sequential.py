"""Inference that may be looked at any time: is an arm worse than the control by more than a margin?

Every user in turn is a small random experiment: with a known probability p they got the challenger (z = 1), otherwise
the control (z = 0). With their outcome y, measured from a centre that was fixed before they came,

    d = (z / p - (1 - z) / (1 - p)) * y

has, whatever came before, the user's own effect y(challenger) - y(control) as its mean (Horvitz & Thompson, JASA 47,
1952). So d - margin is a game that cannot be won as long as the arm is not worse by more than the margin, and the
wealth of somebody who bets a part f of what can be lost,

    E_n = prod_i (1 + f * (d_i - margin) / (reach_i + margin)),    d_i >= -reach_i,  0 < f < 1,

exceeds 1 / alpha at any time with a probability of at most alpha (Ville's inequality): Waudby-Smith & Ramdas, "Estimating
means of bounded random variables by betting", JRSS-B 86, 2024. Nothing is assumed of the outcomes but their limits: not
that they are alike, nor that the time of day does not matter, nor that p stays; this is the design-based view of Ham,
Bojinov, Lindon & Tingley, "Design-based confidence sequences", arXiv:2210.08639, 2022.

Two averages of such bets make it powerful, and an average of them is one again: over the parts f (their "grid Kelly"),
and over the user from whom on one bets, so that an arm that fails late is found, too, although the bets before then
were lost (as in Shin, Ramdas & Rinaldo, "E-detectors", NEJSDS 2, 2024, with weights that sum to one).
"""

import math
from dataclasses import dataclass

import numpy as np

FRACTIONS = 0.9 * 0.5 ** np.arange(10)
"""The parts f."""
RESTART_EVERY = 500
"""Units after which another bettor begins; the i-th one (from 0) has the weight 1 / ((i + 1) (i + 2))."""
CENTRE_WINDOW = 500
_BISECTIONS = 18


@dataclass(frozen=True)
class Effects:
    """Unbiased estimates of the effect, one a unit, in the order in which the units came. Positive: the arm is worse."""

    estimates: np.ndarray
    """[n]"""
    reach_down: np.ndarray
    reach_up: np.ndarray
    """[n] each, known beforehand: -reach_down <= estimates <= reach_up."""

    def __len__(self) -> int:
        return len(self.estimates)

    @property
    def mean(self) -> float:
        """NaN without any unit."""
        return float(self.estimates.mean()) if len(self) else math.nan

    def log_evidence_worse(self, margin: float) -> np.ndarray:
        """[n] natural logarithm of the e-process against "the arm is worse by at most `margin`"."""
        return _log_evidence((self.estimates - margin) / (self.reach_down + margin))

    def log_evidence_not_worse(self, margin: float) -> np.ndarray:
        """[n] natural logarithm of the e-process against "the arm is worse by at least `margin`"."""
        return _log_evidence((margin - self.estimates) / (self.reach_up - margin))

    def at_least(self, alpha: float, limit: float) -> float:
        """A lower bound of the effect that holds with probability 1 - `alpha` at all times together.

        It is the smallest margin that is not yet rejected, between -`limit` and `limit` (the reach of an effect).
        """
        return self._boundary(lambda margin: _highest(self.log_evidence_worse(margin)), alpha, limit)

    def at_most(self, alpha: float, limit: float) -> float:
        """An upper bound of the effect, as `at_least`."""
        return -self._boundary(lambda margin: _highest(self.log_evidence_not_worse(-margin)), alpha, limit)

    def _boundary(self, evidence, alpha: float, limit: float) -> float:
        """The margin at which the evidence, which falls with it, passes 1 / alpha."""
        low, high = -limit, limit
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if evidence(middle) >= -math.log(alpha) else (low, middle)
        return low


def estimate_effects(
    is_challenger: np.ndarray, probability: np.ndarray, deviation: np.ndarray, low: np.ndarray, high: np.ndarray
) -> Effects:
    """The effects of units [n] whose `deviation` from a predictable centre lies between `low` <= 0 and `high` >= 0.

    `probability` is that of getting the challenger, strictly between 0 and 1. Raises `ValueError` for a value that is
    missing, outside of its limits, or whose probability says that it was no random experiment.
    """
    if not (np.all(probability > 0) and np.all(probability < 1)):
        raise ValueError("a probability is not strictly between 0 and 1")
    if not (np.all(deviation >= low - 1e-9) and np.all(deviation <= high + 1e-9)):  # also where one is NaN
        raise ValueError("a deviation is missing or outside of its limits")
    weight = np.where(is_challenger, 1 / probability, -1 / (1 - probability))
    return Effects(
        estimates=weight * np.clip(deviation, low, high),
        reach_down=np.maximum(high / (1 - probability), -low / probability),
        reach_up=np.maximum(high / probability, -low / (1 - probability)),
    )


def predictable_centre(values: np.ndarray, first: float) -> np.ndarray:
    """[n] for each unit the mean of the last `CENTRE_WINDOW` values before it; `first` where there is none.

    Any number that is fixed before a unit comes is right; one near its outcome makes the estimates quiet.
    """
    if not len(values):
        return np.empty(0)
    sums = np.concatenate([[0.0], np.cumsum(values)])[:-1]
    count = np.arange(len(values))
    before = np.maximum(count - CENTRE_WINDOW, 0)
    taken = count - before
    return np.where(taken > 0, (sums - sums[before]) / np.maximum(taken, 1), first)


def _log_evidence(gains: np.ndarray) -> np.ndarray:
    """[n] the logarithm of the averaged wealth of all bettors, from `gains` [n] >= -1 for a stake of one."""
    if not len(gains):
        return np.empty(0)
    units = np.arange(len(gains))
    starts = np.arange(0, len(gains), RESTART_EVERY)
    number = np.arange(len(starts))
    log_weights = -np.log((number + 1.0) * (number + 2.0))
    begun = units // RESTART_EVERY
    total = -np.log(begun + 2.0)  # the bettors who have not begun still hold their stakes
    for fraction in FRACTIONS:
        wealth = np.cumsum(np.log1p(fraction * gains))
        at_start = np.where(starts > 0, wealth[starts - 1], 0.0)
        bettors = np.logaddexp.accumulate(log_weights - at_start)
        total = np.logaddexp(total, wealth + bettors[begun] - math.log(len(FRACTIONS)))
    return total


def _highest(log_evidence: np.ndarray) -> float:
    """What was proven once stays proven."""
    return float(log_evidence.max()) if len(log_evidence) else -math.inf

"""Intervals by the bootstrap: the percentile method, seeded, over the unit that is really independent.

Captions are resampled in pairs (both arms answer the same caption with the same seed). Latencies are resampled by
round, not by request: requests of one round share the machine's mood, and each round holds every arm. Held-out samples that
are nearly the same count as one group.
See Efron & Tibshirani, "An Introduction to the Bootstrap", chapters 8 and 13.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

_FEWEST_GROUPS = 1.5
"""Of equal size: beneath two, Student's t has less than one degree of freedom, and soon tells nothing."""


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    family_low: float
    """The ends at the confidence that one of a family of checks needs to be refuted."""
    family_high: float


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are drawn: two-sided at `confidence`, from `resamples` draws.

    Of a `family` of checks any one may refute the whole, by chance, too: for that the confidence is that of all of them
    together, each at 1 - (1 - confidence) / family (Bonferroni).
    """

    confidence: float
    resamples: int
    seed: int
    family: int = 1

    @property
    def alone(self) -> "Bootstrap":
        """The same for one question that stands by itself."""
        return replace(self, family=1)

    def mean(self, values: Sequence[float], *, reach: float = 0.0) -> Interval:
        """Interval of the mean of `values`; for a paired difference, give the differences.

        Where few values differ, or none, draws from them alone know nothing of a rare one that was not met: an interval of
        equal values would be a point. With a `reach`, the furthest that one more value could lie from zero, it is drawn as
        if one had lain there on each side (as Bonett and Price 2012 adjust the interval of matched pairs): of n equal 0/1
        scores it comes to about 3 / n each way.
        """
        array = np.asarray([*values, reach, -reach] if reach else values, dtype=float)
        indices = self._indices(len(array))
        return self._interval(array[indices].mean(axis=1))

    def grouped_mean(self, values: Sequence[float], groups: Sequence[int]) -> Interval | None:
        """Interval of the mean of `values` that come in groups, each of which moves as a whole; `None` where one group holds
        nearly all of them.

        Not drawn, as few groups need: the jackknife's standard error, which leaves out one group at a time (MacKinnon,
        Nielsen & Webb 2023, "Cluster-robust inference: a guide to empirical practice", CV3), by Student's t with one degree
        of freedom less than there would be groups of equal size: of 256 samples a group of 200 leaves next to none.
        """
        from scipy.stats import t

        array, of = np.asarray(values, dtype=float), np.unique(np.asarray(groups), return_inverse=True)[1]
        sizes, mean = np.bincount(of), float(array.mean())
        equal_groups = len(array) ** 2 / (sizes.astype(float) ** 2).sum()
        if equal_groups < _FEWEST_GROUPS:
            return None
        without = (array.sum() - np.bincount(of, array)) / (len(array) - sizes)
        error = math.sqrt((len(sizes) - 1) / len(sizes) * ((without - mean) ** 2).sum())
        tail = (1 - self.confidence) / 2
        reach = [float(t.ppf(1 - part, equal_groups - 1)) * error for part in (tail, tail / self.family)]
        return Interval(*(mean + sign * each for each in reach for sign in (-1, 1)))

    def rate(self, amounts: Sequence[float], durations: Sequence[float]) -> Interval:
        """Interval of sum(amounts) / sum(durations), both resampled together."""
        indices = self._indices(len(amounts))
        top, bottom = (np.asarray(values, dtype=float)[indices].sum(axis=1) for values in (amounts, durations))
        return self._interval(top / bottom)

    def rate_ratio(self, first: Sequence[tuple[float, float]], second: Sequence[tuple[float, float]]) -> Interval:
        """Interval of the ratio of two rates, each of (amount, duration) pairs; both arms take the same resampled pairs."""
        indices = self._indices(len(first))
        top, bottom = (np.asarray(pairs, dtype=float)[indices].sum(axis=1) for pairs in (first, second))
        return self._interval((top[:, 0] / top[:, 1]) / (bottom[:, 0] / bottom[:, 1]))

    def quantile(self, rounds: Sequence[Sequence[float]], quantile: float) -> Interval:
        """Interval of a quantile of all samples in `rounds`, resampled by round."""
        draws = _resampled_quantiles(rounds, self._indices(len(rounds)), quantile)
        return self._interval(draws)

    def quantile_ratio(
        self, numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]], quantile: float
    ) -> Interval:
        """Interval of the ratio of two arms' quantiles; both arms take the same resampled rounds."""
        indices = self._indices(len(numerator))
        top = _resampled_quantiles(numerator, indices, quantile)
        bottom = _resampled_quantiles(denominator, indices, quantile)
        return self._interval(top / bottom)

    def log_quantile_ratio(
        self, numerator: Sequence[Sequence[float]], denominator: Sequence[Sequence[float]], quantile: float
    ) -> tuple[float, float]:
        """The logarithm of that ratio, and its standard error."""
        indices, every = self._indices(len(numerator)), np.arange(len(numerator))[None]
        drawn, value = (
            np.log(_resampled_quantiles(numerator, rows, quantile) / _resampled_quantiles(denominator, rows, quantile))
            for rows in (indices, every)
        )
        return float(value[0]), float(drawn.std(ddof=1))

    def normal_ratio(self, value: float, log_error: float) -> Interval:
        """Interval of a ratio whose logarithm has this standard error: normal, not drawn."""
        tail = (1 - self.confidence) / 2
        reach = [NormalDist().inv_cdf(1 - part) * log_error for part in (tail, tail / self.family)]
        return Interval(*(value * math.exp(sign * each) for each in reach for sign in (-1, 1)))

    def _indices(self, count: int) -> np.ndarray:
        """[resamples, count] indices, drawn with replacement."""
        return np.random.default_rng(self.seed).integers(0, count, size=(self.resamples, count))

    def _interval(self, draws: np.ndarray) -> Interval:
        tail = (1 - self.confidence) / 2
        in_family = tail / self.family
        ends = np.quantile(draws, [tail, 1 - tail, in_family, 1 - in_family])
        return Interval(*(float(end) for end in ends))


def _resampled_quantiles(rounds: Sequence[Sequence[float]], indices: np.ndarray, quantile: float) -> np.ndarray:
    """The quantile of the pooled samples of each row of `indices` [resamples, rounds] -> [resamples].

    Rounds may differ in length: the shorter ones are padded with NaN, which the quantile leaves out.
    """
    length = max(len(samples) for samples in rounds)
    table = np.full((len(rounds), length), np.nan)
    for row, samples in enumerate(rounds):
        table[row, : len(samples)] = samples
    pooled = table[indices].reshape(len(indices), -1)
    if np.isnan(table).any():
        return np.nanquantile(pooled, quantile, axis=1)
    return np.quantile(pooled, quantile, axis=1)

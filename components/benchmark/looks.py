"""When more measuring would decide nothing: looks at a comparison with the champion while it goes on.

A look ends it where a bound is broken, or all are kept, at 99.9%: so much surer than a verdict must be that a few such looks
leave the verdict's own error nearly as it was (Haybittle 1971; Peto et al. 1976: the rule for the interim analyses of
clinical trials). What decides nothing is measured for longer, up to a limit.
"""

import math
from collections.abc import Iterable, Sequence
from enum import Enum

import numpy as np

from components.benchmark.settings import DecidingBounds
from components.benchmark.statistics import Bootstrap

_SURE = 0.999
_RATIOS = Bootstrap(confidence=_SURE, resamples=500, seed=0)
_MEANS = Bootstrap(confidence=_SURE, resamples=8000, seed=0)
_VALUES = Bootstrap(confidence=0.95, resamples=1000, seed=0)


class Standing(Enum):
    """How sure it is what a bound would say."""

    KEPT, BROKEN, OPEN = "surely kept", "surely broken", "open"


def latencies(bounds: DecidingBounds, ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> Standing:
    """Of the ratios of p50 and p95, from the samples of each round, in milliseconds, both arms' in the same rounds.

    Few rounds tell little of how far their own bootstrap's ends lie: its standard error on the logarithm is taken by
    Student's t, with one degree of freedom less than there are rounds.
    """
    from scipy.stats import t

    if len(ours) < 2:
        return Standing.OPEN
    times = float(t.ppf(1 - (1 - _SURE) / 2, len(ours) - 1))
    found = []
    for quantile, bound in ((0.50, bounds.max_p50_ratio), (0.95, bounds.max_p95_ratio)):
        value, error = _RATIOS.log_quantile_ratio(ours, theirs, quantile)
        found.append(_stands(value - times * error, value + times * error, math.log(bound)))
    return together(found)


def accuracy_vs_champion(bounds: DecidingBounds, ours: Sequence[float], theirs: Sequence[float]) -> Standing:
    """Of the shares of right images, caption by caption."""
    lost = [champion - candidate for champion, candidate in zip(theirs, ours, strict=True)]
    interval = _MEANS.mean(lost, reach=1.0)
    return _stands(interval.low, interval.high, bounds.accuracy_margin)


def accuracy_loss_int8(bounds: DecidingBounds, ours: Sequence[float], full: Sequence[float]) -> Standing:
    """Likewise. Its bound is held against the value, so it is open where the value might have come out on the other side:
    the bound lies within the value's 95% interval."""
    lost = [exact - rounded for exact, rounded in zip(full, ours, strict=True)]
    interval = _VALUES.mean(lost, reach=1.0)
    return _stands(interval.low, interval.high, bounds.max_accuracy_loss_int8)


def together(standings: Iterable[Standing]) -> Standing:
    """A verdict needs all: one that is surely broken decides it, one that is open leaves it open."""
    found = set(standings)
    return next((each for each in (Standing.BROKEN, Standing.OPEN) if each in found), Standing.KEPT)


def _stands(low: float, high: float, bound: float) -> Standing:
    if not np.isfinite([low, high]).all():
        return Standing.OPEN
    return Standing.KEPT if high <= bound else Standing.BROKEN if low > bound else Standing.OPEN

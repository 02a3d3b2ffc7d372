"""How one bound is judged. Nothing here ever turns an absent, non-finite or thin measurement into a pass."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from components.benchmark.measurements import Frechet, ThroughputChunk
from components.benchmark.statistics import Bootstrap, Interval
from components.gate.verdict import Check, Result

Kind = Literal["quality", "latency", "size", "safety"]
Comparison = Literal[">=", "<="]
Samples = Sequence[float | None]
Groups = Sequence[int] | None
"""The group of each sample, `None` where each stands alone."""
Rounds = Sequence[Sequence[float | None]]

_SIGNS: dict[Comparison, str] = {">=": "≥", "<=": "≤"}
_MISSING = "the metric is missing"
_NOT_FINITE = "the metric is not a finite number"


def absolute(
    name: str, kind: Kind, value: float | None, comparison: Comparison, bound: float, *, n: int = 1, min_n: int = 1
) -> Check:
    """A value against a bound, without an interval: sizes and other exact numbers."""
    problem = _problem_of_value(value) or _problem_of_count(n, min_n)
    if problem or value is None:
        return _refused(name, kind, comparison, bound, n, problem or _MISSING)
    result, reason = _compared(value, comparison, bound)
    return _check(name, kind, value, comparison, bound, n, None, result, reason)


def share(
    name: str,
    values: Samples,
    comparison: Comparison,
    bound: float,
    *,
    min_n: int,
    bootstrap: Bootstrap,
    groups: Groups = None,
) -> Check:
    """The mean of per-sample values against a bound. The value decides; its interval is reported beside it.

    The bound speaks of the measured mean on a fixed, frozen set of samples, so the sampling error of that set is not
    held against the candidate; `min_n` keeps the set large.
    """
    problem = _problem_of_samples(values, min_n)
    if problem:
        return _refused(name, "quality", comparison, bound, len(values), problem)
    numbers = [float(v) for v in values if v is not None]
    value, interval = sum(numbers) / len(numbers), _mean_interval(bootstrap, numbers, groups)
    return _judged_by_value(name, "quality", value, comparison, bound, len(numbers), interval)


def difference(
    name: str,
    first: Samples,
    second: Samples,
    comparison: Comparison,
    bound: float,
    *,
    min_n: int,
    bootstrap: Bootstrap,
    decided_by: Literal["value", "interval"] = "interval",
    reach: float = 0.0,
    groups: Groups = None,
) -> Check:
    """Mean of the paired differences first - second against a bound. `reach` is the largest difference that one pair can
    have, where most pairs have none (see `Bootstrap.mean`); of pairs that come in `groups`, only whole groups are
    independent.

    By default the interval decides (a non-inferiority test); by value where the bound, like `share`'s, speaks of the
    measured mean on the frozen samples.
    """
    if len(first) != len(second):
        reason = f"the samples do not pair: {len(first)} against {len(second)}"
        return _refused(name, "quality", comparison, bound, min(len(first), len(second)), reason)
    problem = _problem_of_samples(first, min_n) or _problem_of_samples(second, min_n)
    if problem:
        return _refused(name, "quality", comparison, bound, len(first), problem)
    differences = [a - b for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    value, interval = sum(differences) / len(differences), _mean_interval(bootstrap, differences, groups, reach)
    if decided_by == "value":
        return _judged_by_value(name, "quality", value, comparison, bound, len(differences), interval)
    if interval is None:
        reason = "all samples, or nearly all, are of one group, much the same: they do not tell how it is on others"
        return _check(name, "quality", value, comparison, bound, len(differences), None, Result.INCONCLUSIVE, reason)
    judged = _judged_by_interval(name, "quality", value, comparison, bound, len(differences), interval)
    return judged.model_copy(update={"reason": judged.reason + _told_groups(groups)})


def _mean_interval(bootstrap: Bootstrap, values: list[float], groups: Groups, reach: float = 0.0) -> Interval | None:
    """`None` where one group holds all or nearly all."""
    if groups is None or len(set(groups)) == len(values):
        return bootstrap.mean(values, reach=reach)
    return bootstrap.grouped_mean(values, groups)


def _told_groups(groups: Groups) -> str:
    found = 0 if groups is None else len(set(groups))
    return "" if groups is None or found == len(groups) else f" (the samples come in {found} groups of nearly the same)"


def latency_quantile(
    name: str, rounds: Rounds, quantile: float, bound_ms: float, *, min_n: int, min_rounds: int, bootstrap: Bootstrap
) -> Check:
    """A quantile of one arm's latency against a bound; the interval over rounds decides."""
    n = sum(map(len, rounds))
    problem = _problem_of_rounds(rounds, min_n, min_rounds)
    if problem:
        return _refused(name, "latency", "<=", bound_ms, n, problem)
    numbers = _numbers(rounds)
    value = _quantile(numbers, quantile)
    return _judged_by_interval(name, "latency", value, "<=", bound_ms, n, bootstrap.quantile(numbers, quantile))


def latency_ratio(
    name: str,
    first: Rounds,
    second: Rounds,
    quantile: float,
    bound: float,
    *,
    min_n: int,
    min_rounds: int,
    bootstrap: Bootstrap,
) -> Check:
    """Ratio of two arms' latency quantiles, measured in the same rounds, against a bound; the interval decides."""
    n = min(sum(map(len, first)), sum(map(len, second)))
    problem = _problem_of_rounds(first, min_n, min_rounds) or _problem_of_rounds(second, min_n, min_rounds)
    if not problem and len(first) != len(second):
        problem = f"the rounds do not pair: {len(first)} against {len(second)}"
    if problem:
        return _refused(name, "latency", "<=", bound, n, problem)
    top, bottom = _numbers(first), _numbers(second)
    value = _quantile(top, quantile) / _quantile(bottom, quantile)
    interval = bootstrap.quantile_ratio(top, bottom, quantile)
    return _judged_by_interval(name, "latency", value, "<=", bound, n, interval)


def throughput_ratio(
    name: str,
    first: Sequence[ThroughputChunk],
    second: Sequence[ThroughputChunk],
    bound: float,
    *,
    bootstrap: Bootstrap,
) -> Check:
    """Ratio of two arms' images a second over the same chunks of questions, against a bound.

    The value decides, the interval is reported beside it: where few captions are asked there are few chunks.
    """
    n = min(len(first), len(second))
    arms = [[(chunk.images, chunk.seconds) for chunk in arm] for arm in (first, second)]
    if not n or not all(any(images for images, _ in arm) for arm in arms):
        return _refused(name, "latency", ">=", bound, n, _MISSING)
    if len(first) != len(second):
        return _refused(name, "latency", ">=", bound, n, f"the chunks do not pair: {len(first)} against {len(second)}")
    ours, theirs = (sum(images for images, _ in arm) / sum(seconds for _, seconds in arm) for arm in arms)
    return _judged_by_value(name, "latency", ours / theirs, ">=", bound, n, bootstrap.rate_ratio(*arms))


def distance_ratio(
    name: str, first: Frechet | None, second: Frechet | None, bound: float, *, bootstrap: Bootstrap
) -> Check:
    """Ratio of two arms' Fréchet distances to the same real images against a bound; the interval decides.

    The interval is normal on the logarithm, with the standard error of the paired draws: few draws are enough for it.
    """
    if first is None or second is None:
        return _refused(name, "quality", "<=", bound, 0, _MISSING)
    n = min(len(first.draws), len(second.draws))
    if first.space != second.space:
        return incomparable(name, "quality", "<=", bound, f"{first.space} and {second.space} are other spaces")
    if not all(math.isfinite(each) and each > 0 for arm in (first, second) for each in (arm.value, *arm.draws)):
        return _refused(name, "quality", "<=", bound, n, _NOT_FINITE)
    value = first.value / second.value
    spread = float(np.std(np.log(first.draws) - np.log(second.draws), ddof=1))
    return _judged_by_interval(name, "quality", value, "<=", bound, n, bootstrap.normal_ratio(value, spread))


def incomparable(name: str, kind: Kind, comparison: Comparison, bound: float, reason: str) -> Check:
    """A comparison that has no meaning on this evidence: INVALID, and no number."""
    return Check(
        name=name, kind=kind, comparison=comparison, value=None, bound=bound, n=0, result=Result.INVALID, ok=False, reason=reason
    )  # fmt: skip


def undecided(check: Check, reason: str) -> Check:
    """The same check where its numbers, whatever they are, tell nothing."""
    return check.model_copy(update={"result": Result.INCONCLUSIVE, "ok": False, "reason": reason})


def _judged_by_value(
    name: str, kind: Kind, value: float, comparison: Comparison, bound: float, n: int, interval: Interval | None
) -> Check:
    result, reason = _compared(value, comparison, bound)
    return _check(name, kind, value, comparison, bound, n, interval, result, reason)


def _compared(value: float, comparison: Comparison, bound: float) -> tuple[Result, str]:
    ok = value >= bound if comparison == ">=" else value <= bound
    reason = f"{value:.4g} {'keeps' if ok else 'breaks'} the bound {_SIGNS[comparison]} {bound:.4g}"
    return (Result.PASS if ok else Result.FAIL), reason


def _judged_by_interval(
    name: str, kind: Kind, value: float, comparison: Comparison, bound: float, n: int, interval: Interval
) -> Check:
    """Proven at the confidence of each check, since a candidate passes only if all do; refuted at the one of the whole
    family, since any one rejects it."""
    if comparison == ">=":
        proven, breaks, refuted = interval.low >= bound, interval.high < bound, interval.family_high < bound
    else:
        proven, breaks, refuted = interval.high <= bound, interval.low > bound, interval.family_low > bound
    shown = f"[{interval.low:.4g}, {interval.high:.4g}]"
    if proven:
        result, reason = Result.PASS, f"the whole interval {shown} keeps the bound {_SIGNS[comparison]} {bound:.4g}"
    elif refuted:
        result, reason = Result.FAIL, f"the whole interval {shown} breaks the bound {_SIGNS[comparison]} {bound:.4g}"
    elif breaks:
        wide = f"[{interval.family_low:.4g}, {interval.family_high:.4g}]"
        result = Result.INCONCLUSIVE
        reason = (
            f"the interval {shown} breaks the bound {bound:.4g}, but not surely enough for one of several checks: {wide} "
            "holds it"
        )
    else:
        result = Result.INCONCLUSIVE
        reason = f"the interval {shown} holds the bound {bound:.4g}: more samples or a quieter machine are needed"
    return _check(name, kind, value, comparison, bound, n, interval, result, reason)


def _check(
    name: str, kind: Kind, value: float, comparison: Comparison, bound: float, n: int,
    interval: Interval | None, result: Result, reason: str,
) -> Check:  # fmt: skip
    return Check(
        name=name,
        kind=kind,
        comparison=comparison,
        value=value,
        bound=bound,
        n=n,
        interval=None if interval is None else (interval.low, interval.high),
        result=result,
        ok=result is Result.PASS,
        reason=reason,
    )


def _refused(name: str, kind: Kind, comparison: Comparison, bound: float, n: int, reason: str) -> Check:
    """A metric that is not there fails: what was not shown is not true."""
    return Check(
        name=name, kind=kind, comparison=comparison, value=None, bound=bound, n=n, result=Result.FAIL, ok=False, reason=reason
    )  # fmt: skip


def _problem_of_value(value: float | None) -> str | None:
    if value is None:
        return _MISSING
    return None if math.isfinite(value) else _NOT_FINITE


def _problem_of_count(n: int, minimum: int) -> str | None:
    return f"only {n} samples, {minimum} are needed" if n < minimum else None


def _problem_of_samples(values: Samples, minimum: int) -> str | None:
    if not values:
        return _MISSING
    if any(value is None or not math.isfinite(value) for value in values):
        return _NOT_FINITE
    return _problem_of_count(len(values), minimum)


def _problem_of_rounds(rounds: Rounds, min_n: int, min_rounds: int) -> str | None:
    if len(rounds) and len(rounds) < min_rounds:
        return f"only {len(rounds)} rounds, {min_rounds} are needed"
    samples = [value for block in rounds for value in block]
    if any(value is not None and value <= 0 for value in samples):
        return "a latency is not positive"
    return _problem_of_samples(samples, min_n)


def _numbers(rounds: Rounds) -> list[list[float]]:
    return [[value for value in block if value is not None] for block in rounds]


def _quantile(rounds: Sequence[Sequence[float]], quantile: float) -> float:
    return float(np.quantile([value for block in rounds for value in block], quantile))

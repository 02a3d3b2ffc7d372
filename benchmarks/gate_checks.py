"""What `benchmarks.gate` promises, from the verdicts."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from benchmarks.report import Check
from components.benchmark.measurements import Measurements
from components.gate.verdict import Result, Verdict

SAME, SLOW, SLIGHTLY_SLOW, DAMAGED, HOG, HOG_SLOW = (
    "the same model (A/A)",
    "15% slower",
    "5% slower",
    "damaged weights",
    "the same model, hog",
    "15% slower, hog",
)


@dataclass(frozen=True)
class Gate:
    """One live gate."""

    measured: Measurements
    verdict: Verdict
    strict: Verdict


GatesByKind = Mapping[str, Sequence[Gate]]


def all_checks(gates: GatesByKind, drawn: Mapping[str, Counter[Result]], alike: Counter[Result]) -> list[Check]:
    """False alarms, power, time, and what a hog does. `drawn` are the verdicts of the resampled gates of a kind, `alike`
    the accuracy check's results on two draws of one model."""
    same = gates[SAME]
    wrong = sum(gate.verdict.result is Result.FAIL for gate in gates.get(HOG, ()))
    wrong += sum(gate.verdict.result is Result.PASS for gate in gates.get(HOG_SLOW, ()))
    hogs = len(gates.get(HOG, ())) + len(gates.get(HOG_SLOW, ()))
    clear = [gate.measured.seconds for kind in (SLOW, DAMAGED) for gate in gates[kind]]
    return [
        _rate("aa_false_verdict_rate", _verdicts(same), _failed, 0.05, 0.0, at_least=False),
        _drawn("aa_false_verdict_rate_resampled", drawn[SAME], Result.FAIL, 0.02, 0.005, at_least=False),
        _rate("aa_pass_rate", _verdicts(same), _passed, 0.90, 0.99),
        _drawn("aa_pass_rate_resampled", drawn[SAME], Result.PASS, None, 0.99),
        _rate("aa_false_verdict_rate_strict", [gate.strict for gate in same], _failed, None, 0.0, at_least=False),
        _drawn("aa_accuracy_false_rate", alike, Result.FAIL, 0.05, 0.0, at_least=False),
        _drawn("aa_accuracy_pass_rate", alike, Result.PASS, None, 0.90),
        _rate("power_slow_15", _verdicts(gates[SLOW]), _failed, 0.90, 0.99),
        _rate("power_slow_15_by_p50_alone", _verdicts(gates[SLOW]), _median_failed, None, 0.99),
        _drawn("power_slow_15_resampled", drawn[SLOW], Result.FAIL, None, 0.99),
        _rate("power_slow_5", [gate.strict for gate in gates[SLIGHTLY_SLOW]], _failed, None, 0.90),
        _rate("power_quality_3", _verdicts(gates[DAMAGED]), _failed, 0.90, 0.99),
        _drawn("power_quality_3_resampled", drawn[DAMAGED], Result.FAIL, None, 0.99),
        Check("gate_seconds_clear_case", float(np.median(clear)), 60, 30, len(clear), at_least=False),
        Check("hog_wrong_verdicts", wrong, 0, 0, hogs, at_least=False),
    ]


def _verdicts(gates: Sequence[Gate]) -> list[Verdict]:
    return [gate.verdict for gate in gates]


def _failed(verdict: Verdict) -> bool:
    return verdict.result is Result.FAIL


def _median_failed(verdict: Verdict) -> bool:
    return any(check.name == "p50_ratio_vs_champion" and check.result is Result.FAIL for check in verdict.checks)


def _passed(verdict: Verdict) -> bool:
    return verdict.result is Result.PASS


def _drawn(
    name: str, results: Counter[Result], counted: Result, bound: float | None, aim: float, *, at_least: bool = True
) -> Check:
    return _share(name, results[counted], results.total(), bound, aim, at_least=at_least)


def _rate(
    name: str,
    verdicts: Sequence[Verdict],
    counts: Callable[[Verdict], bool],
    bound: float | None,
    aim: float,
    *,
    at_least: bool = True,
) -> Check:
    return _share(name, sum(map(counts, verdicts)), len(verdicts), bound, aim, at_least=at_least)


def _share(name: str, hits: int, of: int, bound: float | None, aim: float, *, at_least: bool = True) -> Check:
    """With its Clopper-Pearson interval at 95%. Where nothing was counted that is all from 0 to 1, and the value its bad end,
    which keeps no bound."""
    if not of:
        return Check(name, 0.0 if at_least else 1.0, bound, aim, 0, at_least, 0.0, 1.0)
    interval = binomtest(hits, of).proportion_ci(method="exact")
    return Check(name, hits / of, bound, aim, of, at_least, float(interval.low), float(interval.high))

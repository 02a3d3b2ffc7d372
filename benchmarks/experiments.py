"""How often does an A/B test stop an arm that is not worse, and how soon one that is?

    python -m benchmarks.experiments [--json F] [--quick]

Tests are simulated and judged by the code that judges real ones (serving/release/experiments). Each is looked at 100
times, as is a z test of the same users, which is made for one look at the end. False stops are counted where they are
likeliest: no difference, and a margin of 0. Stops of a worse arm are counted at the policy's own margins.
"""

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from scipy.stats import beta

from benchmarks.experiment_canaries import whole_canary
from benchmarks.experiment_costs import cost_rows
from benchmarks.experiment_stops import LOOKS, POLICY, looks_after, stop_path, z_test_stops
from benchmarks.experiment_traffic import (
    METRICS,
    Arm,
    NewUsers,
    Ramp,
    ReturningUsers,
    Simulation,
    UnlikeUsers,
)
from benchmarks.report import Announcer, Check, Report, Row, command_line
from serving.release.experiments.evaluation import NEW, estimate

_COLUMNS = ("stopped", "z_test", "z_test_one_look", "median_users")


@dataclass(frozen=True)
class Amount:
    """How many tests are simulated of each kind, and of how many users each."""

    null_tests: int = 4000
    power_tests: int = 500
    users: int = 40_000
    canaries: int = 200
    canary_users: int = 2000
    events: int = 100_000


QUICK = Amount(null_tests=300, power_tests=60, users=10_000, canaries=30, canary_users=1000, events=10_000)


def clopper_pearson(count: int, tests: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a share (Clopper & Pearson, Biometrika 26, 1934)."""
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, count, tests - count + 1)) if count else 0.0
    high = float(beta.isf(tail, count + 1, tests - count)) if count < tests else 1.0
    return low, high


def null_row(name: str, simulation: Simulation, tests: int, metrics: tuple[str, ...] = METRICS, seed: int = 0) -> Row:
    """How often tests without a difference stop, at margins of 0, beside the z test."""
    margins = dict.fromkeys(metrics, 0.0) | {"latency_ratio": 1.0}
    stops, z_stops = 0, np.zeros(2)
    for number in range(tests):
        traffic = simulation(np.random.default_rng([seed, number]))
        stops += bool(stop_path(traffic, metrics, margins)[looks_after(len(traffic.units)) - 1].any())
        z_looks = z_test_stops(traffic, metrics)
        z_stops += z_looks.any(), z_looks[-1]
    low, high = clopper_pearson(stops, tests)
    more = {"stopped": stops / tests, "stopped_low": low, "stopped_high": high, "z_test": z_stops[0] / tests}
    return Row(name, n=tests, more=more | {"z_test_one_look": z_stops[1] / tests, "looks": LOOKS, "margin": 0.0})


def canary_row(amount: Amount) -> Row:
    """How often whole canaries without a difference are stopped."""
    found = [whole_canary(seed, amount.canary_users, LOOKS) for seed in range(amount.canaries)]
    stops = sum(stopped for stopped, _ in found)
    low, high = clopper_pearson(stops, len(found))
    more = {"stopped": stops / len(found), "stopped_low": low, "stopped_high": high}
    steps = sum(step for _, step in found) / len(found)
    more |= {"looks": LOOKS, "margin": 0.0, "users": amount.canary_users, "mean_ramp_steps": steps}
    return Row("no difference, whole canaries on the event store", n=len(found), more=more)


def power_row(name: str, simulation: Simulation, tests: int, *, since: int = 0, seed: int = 1) -> Row:
    """How often, and after how many users since the fault began, an arm is stopped under the policy's own margins."""
    after = []
    for number in range(tests):
        traffic = simulation(np.random.default_rng([seed, number]))
        stopped = stop_path(traffic, METRICS, POLICY.margins)
        after.append(int(np.argmax(stopped)) + 1 - since if stopped.any() else math.inf)
    stops = int(np.isfinite(after).sum())
    low, high = clopper_pearson(stops, tests)
    median = float(np.median(after))
    more = {"stopped": stops / tests, "stopped_low": low, "stopped_high": high}
    return Row(name, n=tests, more=more | {"median_users": median if math.isfinite(median) else None})


def pass_row(name: str, simulation: Simulation, tests: int, seed: int = 2) -> Row:
    """How often, and after how many users, every metric is proven not worse."""
    bound, after = -math.log(POLICY.alpha_pass), []
    for number in range(tests):
        traffic = simulation(np.random.default_rng([seed, number]))
        proven = np.ones(len(traffic.units) - 1, dtype=bool)
        for metric in METRICS:
            margin = POLICY.margins[metric]
            effects = estimate(metric, NEW, traffic.units, traffic.values[metric])
            evidence = effects.log_evidence_not_worse(math.log(margin) if metric == "latency_ratio" else margin)
            proven &= np.maximum.accumulate(evidence) >= bound
        after.append(np.argmax(proven) + 2 if proven.any() else math.inf)
    passes = int(np.isfinite(after).sum())
    median = float(np.median(after))
    more = {"passed": passes / tests, "median_users": median if math.isfinite(median) else None}
    return Row(name, n=tests, more=more)


def null_rows(amount: Amount, announce: Announcer) -> list[Row]:
    users, fewer = amount.users, max(amount.null_tests // 4, 100)
    kinds: list[tuple[str, Simulation, int, tuple[str, ...]]] = [
        (PROMISE, NewUsers(users), amount.null_tests, METRICS),
        ("no difference, errors alone", NewUsers(users), fewer, ("error_rate",)),
        ("no difference, latency alone", NewUsers(users), fewer, ("latency_ratio",)),
        ("no difference, votes alone", NewUsers(users), fewer, ("bad_vote_share",)),
        ("no difference, 5% canary, errors alone", NewUsers(users, 0.05), fewer, ("error_rate",)),
        ("no difference, ramp on a day that gets slower", Ramp(users), fewer, METRICS),
        ("no difference, ten requests of each user", UnlikeUsers(users // 10), fewer, METRICS),
        ("no difference, 400 users come again and again", ReturningUsers(400, users // 400), fewer, METRICS),
    ]
    rows = []
    for name, simulation, tests, metrics in kinds:
        announce(f"{name}: {tests} tests")
        rows.append(null_row(name, simulation, tests, metrics))
    announce(f"whole canaries: {amount.canaries}")
    return [*rows, canary_row(amount)]


def power_rows(amount: Amount, announce: Announcer) -> list[Row]:
    users, tests, late = amount.users, amount.power_tests, amount.users // 4
    kinds: list[tuple[str, Simulation, int]] = [
        ("15% slower, half each", NewUsers(users, 0.5, Arm(latency_ratio=1.15)), 0),
        ("15% slower, 5% canary", NewUsers(users, 0.05, Arm(latency_ratio=1.15)), 0),
        ("30% slower, 5% canary", NewUsers(users, 0.05, Arm(latency_ratio=1.3)), 0),
        ("errors 1% -> 3%, half each", NewUsers(users, 0.5, Arm(error_rate=0.03)), 0),
        ("errors 1% -> 3%, 5% canary", NewUsers(users, 0.05, Arm(error_rate=0.03)), 0),
        ("errors 1% -> 50%, 5% canary", NewUsers(users, 0.05, Arm(error_rate=0.5)), 0),
        ("every request fails, 5% canary", NewUsers(users, 0.05, Arm(error_rate=1.0)), 0),
        ("bad votes 10% -> 20%, half each", NewUsers(users, 0.5, Arm(bad_vote_rate=0.2)), 0),
        ("errors 1% -> 10%, late, 20% canary", NewUsers(users, 0.2, Arm(error_rate=0.1, since=late)), late),
        (
            "errors 1% -> 10%, late, 400 users who come again",
            ReturningUsers(400, users // 400, arm=Arm(error_rate=0.1, since=late)),
            late,
        ),
        ("5% slower (within the margin), half each", NewUsers(users, 0.5, Arm(latency_ratio=1.05)), 0),
    ]
    rows = []
    for name, simulation, since in kinds:
        announce(f"{name}: {tests} tests")
        rows.append(power_row(name, simulation, tests, since=since))
    return [*rows, pass_row("no difference, half each: passes", NewUsers(users), tests)]


PROMISE = "no difference, half each, all metrics"
"""Of the rows without a difference, the one that `ab_false_stop_rate` is of."""


def false_stop_check(row: Row, name: str = "ab_false_stop_rate") -> Check:
    """Of a row without a difference."""
    told = row.more
    limits = {"low": told["stopped_low"], "high": told["stopped_high"]}
    return Check(name, told["stopped"], POLICY.alpha, POLICY.alpha, row.n, at_least=False, **limits)


def checks(null: list[Row], power: list[Row]) -> list[Check]:
    """The first null row is the promise; the worst of all is reported under the same bound."""
    worst = max(null, key=lambda row: row.more["stopped"])
    found = [false_stop_check(null[0]), false_stop_check(worst, "ab_false_stop_rate_worst_case")]
    by_name = {row.name: row for row in power}
    for check, name in (
        ("ab_power_slow_15", "15% slower, half each"),
        ("ab_power_errors_3", "errors 1% -> 3%, half each"),
    ):
        told = by_name[name].more
        limits = {"low": told["stopped_low"], "high": told["stopped_high"]}
        found.append(Check(check, told["stopped"], None, 0.99, by_name[name].n, **limits))
    return found


def run(console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Simulate, measure and print; whether the bounds hold."""
    amount = amount or Amount()
    report, announce = Report("experiments", command_line(), columns=_COLUMNS), Announcer(console)
    report.notes["policy"] = POLICY.model_dump(mode="json")
    report.notes["users"], report.notes["looks"] = amount.users, LOOKS
    null, power = null_rows(amount, announce), power_rows(amount, announce)
    announce(f"the cost of {amount.events} events")
    report.rows += [*null, *power, *cost_rows(amount.events)]
    report.checks += checks(null, power)
    return report.finish(console, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Simulate A/B tests that are looked at 100 times.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="fewer tests of fewer users")
    chosen = parser.parse_args(arguments)
    return 0 if run(Console(), chosen.json, QUICK if chosen.quick else None) else 1


if __name__ == "__main__":
    sys.exit(main())

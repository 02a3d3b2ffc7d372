"""`benchmarks.experiments`: its form on few tests, and that what it is to find is found."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from benchmarks import experiments
from benchmarks.experiment_stops import z_path
from benchmarks.experiment_traffic import Arm, NewUsers, ReturningUsers, UnlikeUsers


def test_every_row_and_every_check_is_in_the_result(tmp_path):
    file = tmp_path / "experiments.json"
    amount = experiments.Amount(null_tests=4, power_tests=2, users=2000, canaries=2, canary_users=200, events=300)
    held = experiments.run(Console(file=io.StringIO(), width=200), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert rows["no difference, half each, all metrics"]["n"] == 4 and len(rows) == 25
    assert rows["no difference, whole canaries on the event store"]["looks"] == 100
    assert rows["every request fails, 5% canary"]["stopped"] == 1.0
    assert 0 < rows["every request fails, 5% canary"]["median_users"] <= 400
    assert rows["write them all"]["events_per_s"] > 0 and rows["record an outcome"]["median_ms"] > 0
    checks = {check["name"]: check for check in result["checks"]}
    assert [name for name, check in checks.items() if check["bound"] == 0.05] == [
        "ab_false_stop_rate",
        "ab_false_stop_rate_worst_case",
    ]
    assert held == all(check["ok"] for check in checks.values())


def test_false_stops_are_counted_and_a_z_test_has_many():
    row = experiments.null_row("errors", NewUsers(2000), 60, ("error_rate",))
    assert row.more["z_test"] > 0.1 > row.more["stopped"]
    assert row.more["z_test"] > row.more["z_test_one_look"]
    assert row.more["stopped_low"] <= row.more["stopped"] <= row.more["stopped_high"]
    unlike = experiments.null_row("unlike", UnlikeUsers(400), 40)
    assert unlike.more["z_test"] > 0.5 > unlike.more["stopped"]


def test_a_difference_is_no_null_and_is_stopped():
    worse = NewUsers(4000, arm=Arm(error_rate=0.2))
    assert experiments.null_row("worse", worse, 10, ("error_rate",)).more["stopped"] == 1.0
    late = ReturningUsers(100, 40, share=0.5, arm=Arm(error_rate=0.5, since=2000))
    row = experiments.power_row("late", late, 5, since=2000)
    assert row.more["stopped"] == 1.0 and 0 < row.more["median_users"] < 1000


@pytest.mark.parametrize(("count", "low", "high"), [(0, 0.0, 0.0362), (5, 0.0164, 0.1128), (100, 0.9638, 1.0)])
def test_clopper_pearson(count, low, high):
    assert experiments.clopper_pearson(count, 100) == pytest.approx((low, high), abs=1e-4)


def test_the_z_statistic_is_that_of_the_two_means():
    rng = np.random.default_rng(0)
    values, treated = rng.normal(size=500), rng.random(500) < 0.3
    a, b = values[treated], values[~treated]
    expected = (a.mean() - b.mean()) / np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert z_path(values, treated)[-1] == pytest.approx(expected)

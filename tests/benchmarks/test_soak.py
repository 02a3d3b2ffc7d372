"""`emuflow bench soak`: its form on a real server for seconds, and that what it is to find is found."""

import io
import json
import os

import numpy as np
import pytest
from rich.console import Console

from benchmarks import soak
from benchmarks.load import Load
from tests.engines import write_engine
from tests.packages import build


def test_every_row_and_every_promise_is_in_the_result(tmp_path):
    file = tmp_path / "soak.json"
    amount = soak.Amount(minutes=0.1, warmup_seconds=2, capacity_rounds=2, capacity_seconds=1)
    held = soak.run(
        Console(file=io.StringIO()),
        file,
        amount,
        package=lambda work: build(write_engine(work / "engine"), work / "packages", work / "keys"),
    )
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == ["all", "minute 1"]
    for row in result["rows"]:
        assert 0 < row["median_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["largest_ms"]
        assert row["memory_mb"] > 50 and row["n"] > 10
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: check["bound"] for name, check in checks.items()} == {
        "soak_errors": 0,
        "soak_processes_lost": 0,
        "soak_memory_growth": 0.05,
    }
    assert checks["soak_errors"]["value"] == checks["soak_processes_lost"]["value"] == 0
    assert result["warmup_requests"] > 0 and result["errors"] == []
    assert checks["soak_errors"]["n"] == result["warmup_requests"] + result["rows"][0]["n"]
    assert 0 <= result["neighbours_share"] <= 1
    assert checks["soak_memory_growth"]["n"] >= 25
    assert result["offered_per_s"] == pytest.approx(0.8 * result["capacity_images_per_s"])
    rounds = result["capacity_rounds_per_s"]
    assert len(rounds["before"]) == len(rounds["after"]) == 2 and min(rounds["before"] + rounds["after"]) > 0
    assert result["capacity_images_per_s"] == np.median(rounds["before"])
    share = result["offered_per_s"] / np.median(rounds["before"] + rounds["after"])
    assert result["offered_share_of_capacity"] == pytest.approx(share)
    assert held == all(check["ok"] for check in checks.values())


def ok(load: Load, memory: soak.Memory, warmup: Load | None = None) -> dict[str, bool]:
    return {check.name: check.ok for check in soak.checks(load, memory, warmup or Load())}


def test_an_error_a_lost_process_and_a_leak_are_missed_bounds():
    fine = Load(image_ms=[5.0] * 100, due_s=[float(second) for second in range(100)])
    steady = soak.Memory(os.getpid(), 1.0, megabytes=[100.0] * 45 + [900.0] * 10 + [104.0] * 45)  # a peak is no leak
    assert set(ok(fine, steady).values()) == {True}
    leaking = soak.Memory(os.getpid(), 1.0, megabytes=[100 + 0.1 * sample for sample in range(100)])
    assert leaking.growth == pytest.approx(109.45 / 100.45 - 1)
    assert not ok(fine, leaking)["soak_memory_growth"]
    assert not ok(fine, soak.Memory(os.getpid(), 1.0, megabytes=[100.0], lost={7}))["soak_processes_lost"]
    broken = Load(image_ms=[5.0] * 99, due_s=[0.0] * 99, errors=["INTERNAL: once"])
    assert not ok(broken, steady)["soak_errors"]
    assert not ok(fine, steady, warmup=broken)["soak_errors"]


def test_a_latency_belongs_to_the_minute_in_which_its_request_was_due():
    load = Load(image_ms=[1.0, 2.0, 90_000.0, 4.0], due_s=[0.0, 59.9, 59.9, 130.0])
    memory = soak.Memory(os.getpid(), 1.0, at_s=[30.0, 90.0, 150.0], megabytes=[1.0, 2.0, 3.0])
    made = {row.name: (row.n, row.median_ms, row.more["memory_mb"]) for row in soak.rows(load, memory)}
    assert made == {"all": (4, 3.0, 2.0), "minute 1": (3, 2.0, 1.0), "minute 3": (1, 4.0, 3.0)}

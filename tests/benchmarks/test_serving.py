"""`emuflow bench serving` from end to end, on so little that its numbers mean nothing and its form everything."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import serving

PROMISED = {
    "first_preview_p95_ms": (8, 4),
    "image_p95_ms": (12, 6),
    "image_after_preview_p95_ms": (12, 6),
    "serving_overhead_p50_ms": (3, 1.2),
    "throughput_gain_16": (1.8, 2.5),
    "images_per_s_16": (400, 800),
    "stack_throughput_vs_best_ar": (8, 40),
    "stack_latency_vs_best_ar": (8, 40),
    "stack_speedup_vs_naive": (40, 400),
}


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(tmp_path):
    file = tmp_path / "serving.json"
    amount = serving.Amount(rounds=2, seconds=0.5, images=3, naive_images=1)
    held = serving.run(Console(file=io.StringIO()), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 10
    assert all(row["n"] >= 1 and 0 < row["median_ms"] <= row["p95_ms"] for row in rows.values())
    previewed = rows["served, 1 client, with previews"]
    assert previewed["preview_p50_ms"] < previewed["median_ms"]
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (check["bound"], check["aim"]) for name, check in checks.items()} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])

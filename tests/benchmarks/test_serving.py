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
    "stack_accuracy_minus_best_ar": (-1, 0),
}


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(judges, tmp_path):
    file = tmp_path / "serving.json"
    amount = serving.Amount(rounds=2, seconds=0.5, images=3, naive_images=1, seeds=2, captions=12)
    held = serving.run(judges, Console(file=io.StringIO()), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    tried = {name: row for name, row in rows.items() if name.endswith("tried once")}
    assert len(rows) == 16 and len(tried) == 6
    assert all(row["median_ms"] > 0 and row["images_per_s"] > 0 for row in tried.values())
    assert all(
        row["n"] >= 1 and 0 < row["median_ms"] <= row["p95_ms"] for name, row in rows.items() if name not in tried
    )
    judged = [row for row in rows.values() if row["accuracy"] is not None]
    assert [row["name"] for row in judged] == ["served, 16 clients", "next token + details, KV cache, fp32"]
    assert all(row["judged"] == 24 and row["accuracy"] > 0.5 for row in judged)
    # Every engine, number of threads and batch was tried, and the one that counts gave the most.
    ways = result["best_ar_tried"]
    assert {way["engine"] for way in ways} == {
        "onnxruntime",
        "onnxruntime, one graph",
        "onnxruntime, a process for each core",
        "onnxruntime, one graph, a process for each core",
        "torch, eager",
        "torch, compiled",
    }
    assert {way["batch"] for way in ways} == {1, 4, 16, 32, 64}
    again = [way for way in ways if way["rounds"]]
    assert all(way["rounds"] == 2 for way in again)
    best = max(again, key=lambda way: way["images_per_s"])
    assert {name: best[name] for name in ("engine", "threads", "batch")} == result["best_ar"]
    previewed = rows["served, 1 client, with previews"]
    assert previewed["preview_p50_ms"] < previewed["median_ms"]
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (check["bound"], check["aim"]) for name, check in checks.items()} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    assert 0 <= result["neighbours_share"] <= 1

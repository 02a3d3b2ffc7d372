"""`emuflow bench int8` from end to end, on so little that its numbers mean nothing and its form everything."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import int8
from model.quantization.export_onnx import engine_graphs

GRAPHS = engine_graphs(1)

PROMISED = {
    "int8_speedup_same_engine_b1": (1.7, 2.3),
    "int8_speedup_same_engine_b8": (1.7, 2.3),
    "int8_speedup_vs_eager": (2.3, 4),
    "int8_speedup_vs_compile": (1.5, 3),
    "block_bytes_ratio": (0.27, 0.255),
    "package_bytes_ratio": (0.32, 0.27),
    "int8_accuracy_loss": (1, 0.2),
}


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(judges, tmp_path):
    file = tmp_path / "int8.json"
    amount = int8.Amount(rounds=2, calls=2, seeds=2, captions=12)
    held = int8.run(judges, Console(file=io.StringIO()), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert len(rows) == 6
    assert all(row["rounds"] == 2 and 0 < row["median_ms"] <= row["p95_ms"] for row in rows.values())
    assert rows["onnxruntime, INT8"]["n"] == 24 and rows["onnxruntime, INT8"]["accuracy"] > 0.7
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (check["bound"], check["aim"]) for name, check in checks.items()} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    assert 0 <= result["neighbours_share"] <= 1
    assert checks["block_bytes_ratio"]["ok"] and checks["package_bytes_ratio"]["ok"]
    for part, full in result["bytes"]["fp32"].items():
        assert result["bytes"]["int8"][part] > 0 and (full > 10_000 or part == "scales, masks and constants")
    for graph in GRAPHS:
        counted = result["operators"][graph]
        assert counted["int8"]["quantizing"] > counted["fp32"]["quantizing"] == 0
        assert counted["fp32"]["kernels"] <= counted["plain"]["kernels"]
        assert 0 < result["output_error"][graph] < 0.25

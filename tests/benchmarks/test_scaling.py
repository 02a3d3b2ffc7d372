"""`python -m benchmarks.scaling` on one size and two images of each decoder."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import scaling


@pytest.mark.slow
def test_every_way_is_timed(tmp_path):
    file = tmp_path / "scaling.json"
    scaling.run(Console(file=io.StringIO()), file, rounds=2, sides=(8, 16))
    result = json.loads(file.read_text())
    assert [row["name"] for row in result["rows"]] == [
        "64x64, progressive",
        "64x64, progressive, window",
        "64x64, next token + details, KV cache",
        "64x64, one scale, 1 parallel step",
        "64x64, one scale, 1 parallel step, one graph",
        "128x128, progressive",
        "128x128, progressive, window",
        "128x128, next token + details, KV cache",
        "128x128, one scale, 1 parallel step",
        "128x128, one scale, 1 parallel step, one graph",
        "128x128, progressive, sketch of 8x8",
        "128x128, next token + details, KV cache, sketch of 8x8",
    ]
    assert all(0 < row["median_ms"] <= row["p95_ms"] for row in result["rows"])
    checks = {check["name"]: check["value"] for check in result["checks"]}
    assert checks["speedup_vs_next_token_64"] > 1 and checks["window_speedup_64"] > 0
    assert checks["speedup_vs_one_scale_step_128"] > checks["speedup_vs_one_scale_step_64"] > 0
    assert 0 <= result["neighbours_share"] <= 1
    assert checks["speedup_vs_next_token_128_small_sketch"] > 1 and checks["stages_speedup_128"] > 0

"""`emuflow bench decode` from end to end, on so little that its numbers mean nothing and its form everything."""

import io
import json
import math

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import decode, decode_rows

PROMISED = {
    "speedup_vs_best_ar": (5, 20),
    "speedup_vs_ar_cached": (15, 40),
    "speedup_vs_ar": (20, 200),
    "speedup_vs_one_scale": (4, 8),
    "quality_kept_accuracy": (0.987, 1.0),
    "frechet_excess_in_seed_spreads": (1, 0),
    "variety_vs_best_ar": (0.9, 1.1),
    "adapt_cost_share": (0.3, 0.1),
}
AMOUNT = decode.Amount(rounds=2, seeds=2, headline_seeds=3, one_scale_seeds=2, frechet_images=24, captions=12)


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(judges, tmp_path):
    shown = io.StringIO()
    file = tmp_path / "decode.json"
    held = decode.run(judges, Console(file=shown, width=120), file, AMOUNT)
    result = json.loads(file.read_text())
    assert result["benchmark"] == "decode"
    names = [row["name"] for row in result["rows"]]
    one_scale = [name for name in names if name in decode_rows.ONE_SCALE.values()]
    assert one_scale == list(decode_rows.ONE_SCALE.values())[: len(one_scale)] != []
    others = [*decode_rows.PARALLEL, *decode_rows.AUTOREGRESSIVE]
    assert names == [name for name in others if name in one_scale or name not in decode_rows.ONE_SCALE.values()]
    for row in result["rows"]:
        headline = row["name"] in (decode_rows.OURS_INT8, decode_rows.BEST_AR_INT8)
        assert (
            row["n"] == (36 if headline else 24) and 0 <= row["accuracy"] <= 1 and 0 < row["median_ms"] <= row["p95_ms"]
        )
        assert math.isfinite(row["frechet"]) and row["low"] <= row["accuracy_minus_ours"] <= row["high"]
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (checks[name]["bound"], checks[name]["aim"]) for name in PROMISED} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.width > 1000
    assert "speedup_vs_best_ar" in shown.getvalue() and "quality, 1 of" in shown.getvalue()

"""`emuflow bench modality-gate`: all dense ways agree, and from end to end on so little that only its form counts."""

import io
import json

import pytest
import torch
from PIL import Image
from rich.console import Console

from benchmarks import modality_gate
from benchmarks.dense_attention import candidates
from benchmarks.modality_gate_timing import fastest, interleave
from model.transformer.gate import GatedInput, gated_attention

PROMISED = {
    "gate_skipped_share": (0.5, 0.67),
    "gate_quality_kept": (0.987, 1.0),
    "gate_beats_fixed_mask": (0.01, 0.5),
    "gate_beats_random": (0.01, 0.5),
    "gate_attention_speedup": (1.5, 2.5),
}
AMOUNT = modality_gate.Amount(stories=3, rounds=3, draws=2, sweep_stories=1)


def test_every_dense_way_gives_the_same_attention():
    random = torch.Generator().manual_seed(0)
    query, *rest = (torch.randn(1, 4, tokens, 32, generator=random) for tokens in (64, 160, 160, 80, 80))
    given = GatedInput(query * 32**-0.5, *rest, None, torch.ones(1, 4, 2, 4), (16, 64) * 2)
    expected = gated_attention(given)
    for name, attend in candidates(given).items():
        tolerance = 3e-2 if name.endswith("bf16") else 1e-5
        torch.testing.assert_close(
            attend(), expected, atol=tolerance, rtol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
        given.own_values.mul_(-1)  # the buffers take each request's own tokens
        torch.testing.assert_close(attend(), gated_attention(given), atol=tolerance, rtol=tolerance)
        given.own_values.mul_(-1)


def test_all_are_timed_as_often_and_each_after_a_run_that_is_not():
    calls = []
    times = interleave(3, lambda number: {name: lambda name=name: calls.append((number, name)) for name in "ab"})
    assert {name: len(each) for name, each in times.items()} == {"a": 3, "b": 3}
    assert [name for number, name in calls if number == 0] == ["b", "b", "a", "a"]
    assert [name for number, name in calls if number == 1] == ["a", "a", "b", "b"]
    assert fastest({"slow": [3.0, 1.0, 3.0], "fast": [2.0, 2.0, 9.0]}) == "fast"


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(judges, tmp_path):
    shown, file = io.StringIO(), tmp_path / "gate.json"
    held = modality_gate.run(judges, Console(file=shown, width=140), file, AMOUNT)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    judged = [modality_gate.TWIN, modality_gate.GATED, *modality_gate.FIXED, *modality_gate.RANDOM]
    for name in judged:
        row = rows[name]
        assert row["n"] == 78 and 0 <= row["low"] <= row["accuracy"] <= row["high"] <= 1
        assert 0 < row["median_ms"] <= row["p95_ms"] and 0 < row["request_ms"] <= row["request_p95_ms"]
    assert rows[modality_gate.TWIN]["skipped_share"] == 0 < rows[modality_gate.GATED]["skipped_share"]
    for name in modality_gate.FIXED[:2]:
        assert rows[name]["skipped_share"] <= rows[modality_gate.GATED]["skipped_share"]
    assert 0 <= result["neighbours_share"] <= 1
    assert result["context_tokens"] == 2080 and f"dense: {result['fastest_dense']}" in rows
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (checks[name]["bound"], checks[name]["aim"]) for name in PROMISED} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.width > 1000

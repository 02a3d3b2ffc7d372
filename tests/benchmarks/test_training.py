"""The training benchmark on a small shape: every promise is in the result, and a state's cost is what it is called."""

import io
import json

import pytest
from rich.console import Console

from benchmarks import training, training_gpu
from common.errors import PlatformError
from model.transformer.presets import PRESETS

AMOUNT = training.Amount(
    preset="nano",
    sequence=32,
    batch=2,
    rounds=2,
    steps=3,
    accumulation=2,
    data_parallel_rounds=1,
    data_parallel_steps=2,
    loop_steps=65,
    loop_hidden=64,
    loop_layers=2,
)
PROMISED = {
    "tokens_per_s_vs_hf_trainer": (1.0, 1.5),
    "dp_efficiency_2": (0.85, 0.95),
    "overhead_share": (0.05, 0.01),
    "checkpoint_stall_steps": (1, 0),
    "planner_max_error": (0.20, 0.10),
}


@pytest.mark.slow
def test_every_promise_is_in_the_result(tmp_path):
    shown, file = io.StringIO(), tmp_path / "training.json"
    held = training.run(Console(file=shown, width=120), file, AMOUNT)
    result = json.loads(file.read_text())
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (checks[name]["bound"], checks[name]["aim"]) for name in PROMISED} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    names = [row["name"] for row in result["rows"]]
    assert {"ours, fp32", "trainer, fp32", "ours, compiled, fp32", "trainer, compiled, fp32"} <= set(names)
    assert {"data parallel 1", "data parallel 2", "the training loop"} <= set(names)
    assert all(row["median_ms"] > 0 and row["tokens_per_s"] > 0 for row in result["rows"])
    beside = result["beside_trainer_fp32"]
    assert beside["first_losses"]["ours"] == pytest.approx(beside["first_losses"]["trainer"], abs=1e-3)
    assert set(beside["attention"]["probed_s"]) == {"sdpa", "eager"}
    assert checks["planner_max_error"]["value"] == pytest.approx(0.17, abs=0.01)
    assert checks["overhead_share"]["value"] < 1
    assert result["loop"]["state_bytes"] >= 3 * 4 * 0.9 * result["loop"]["parameters"]
    assert len(result["loop"]["written_s"]) == 3


@pytest.mark.slow
def test_the_gpus_rows_are_there_without_one_but_for_what_only_it_can_tell(tmp_path):
    file = tmp_path / "gpu.json"
    amount = training_gpu.Amount(preset="nano", sequence=32, micro_batches=(1, 2), warmup_steps=1, steps=2)
    assert training_gpu.run(Console(file=io.StringIO(), width=160), file, amount)
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == 8 and {row["micro_batch"] for row in rows} == {1, 2}
    assert all(row["tokens_per_s"] == pytest.approx(32_000 * row["micro_batch"] / row["median_ms"]) for row in rows)
    assert all((row["mfu"] is None) == (row["memory_gib"] is None) for row in rows)


def test_mfu_counts_what_is_multiplied():
    config = PRESETS["1b"]
    assert 1.0e9 < config.parameter_count < 1.2e9
    looked_up = config.vocab_size * config.hidden_size
    attention = training_gpu.flops_per_token(config, 4096) - 6 * (config.parameter_count - looked_up)
    # Two products of 16 x 128 numbers with each of 2048 tokens on average, in 20 layers, three times: forward and backward.
    assert attention == 2 * 2 * (16 * 128) * 2048 * 20 * 3


def test_without_a_gpu_its_benchmark_says_so(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PlatformError, match="no GPU is at hand"):
        training_gpu.main([])


def test_what_a_state_costs_is_told_in_steps():
    quiet = [2.0] * 24
    # A state after step 5 adds 1 s to that step and 1 s to the next; one after step 12 adds 4 s.
    seconds = [value + {4: 1.0, 5: 1.0, 11: 4.0}.get(number, 0.0) for number, value in enumerate(quiet)]
    assert training.stall_steps(seconds, [5, 12]) == pytest.approx((2 / 2 + 4 / 2) / 2)
    assert training.stall_steps(quiet, [5, 12]) == 0
    slower = [2.0 + 0.5 * (number > 12) for number in range(24)]  # for a reason of its own
    assert training.stall_steps(slower, [5, 12]) == pytest.approx((0.0 - 0.4) / 2)


def test_what_surrounds_a_step_is_told_as_a_share_also_where_the_machine_changes_its_pace():
    step_s = [2.0] * 10 + [1.0] * 14
    loop_s = [1.25 * seconds for seconds in step_s]
    assert training.outside_share(step_s, loop_s, [11]) == pytest.approx(0.2)
    # A state after step 11 makes the two steps after it slower, which is a part of what surrounds them.
    beside = [seconds + (0.5 if number in (11, 12) else 0.0) for number, seconds in enumerate(step_s)]
    assert training.outside_share(beside, beside, [11]) == pytest.approx(1 / (34 + 1))

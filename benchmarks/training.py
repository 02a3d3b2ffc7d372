"""How fast is a training step, beside the Trainer that people use, on two processes, and with all that surrounds it?

    emuflow bench training --json FILE

Each question is asked in processes of its own, pinned to one core each, with one thread: a decoder of Qwen3's shape beside
Hugging Face's `Trainer` in one process, blocks of steps in turn; the same decoder on one and on two processes, in turn;
and the pipeline's own training loop with its data, curves (in MLflow, too), progress and states. The planner is held against published trainings.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.report import Announcer, Check, Report, Row, command_line
from common.progress import PROGRESS_VARIABLE
from components.benchmark.statistics import Bootstrap
from components.train.launcher import LocalLauncher, RankCommand, rank_environment
from components.train.optimizer import use_bf16
from components.train.settings import OptimizationSettings
from model.parallel.plan.published import RUNS

BOOTSTRAP = Bootstrap(confidence=0.95, resamples=2000, seed=0)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured, and of what model."""

    preset: str = "micro"
    """A shape of `model/transformer/presets.py`, of at least 20M weights where a result is to count."""
    sequence: int = 256
    batch: int = 4
    """Sequences of a step beside the Trainer."""
    rounds: int = 6
    steps: int = 5
    """Of each block beside the Trainer; its first step is not counted."""
    accumulation: int = 16
    data_parallel_rounds: int = 3
    data_parallel_steps: int = 3
    """Of each run on one and on two processes; the first step is not counted."""
    loop_steps: int = 110
    """Of the pipeline's own loop, which saves a state after every 20."""
    loop_hidden: int = 512
    loop_layers: int = 8


def run(console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file`; whether every bound holds."""
    amount = amount or Amount()
    report = Report("training", command_line(), columns=("tokens_per_s", "share"))
    announce = Announcer(console)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder), amount)
        precisions = ["fp32", *(["bf16"] if use_bf16(OptimizationSettings()) else [])]
        for precision in precisions:
            announce(f"beside the Trainer, {precision}")
            bench.beside_trainer(report, precision)
        for number in range(amount.data_parallel_rounds):
            announce(f"one process and two, round {number + 1} of {amount.data_parallel_rounds}")
            bench.data_parallel()
        bench.tell_data_parallel(report)
        announce("the training loop with its data, curves and states")
        bench.loop(report)
    report.checks.append(_planner())
    return report.finish(console, file)


_RIVALS = (
    ("", "ours, compiled", "trainer"),
    ("_neither_compiled", "ours", "trainer"),
    ("_both_compiled", "ours, compiled", "trainer, compiled"),
)
"""Whose step beside whose. The Trainer compiles nothing unless it is told to."""


class _Bench:
    """The measurements of one run; each is made by another process that leaves a JSON file."""

    def __init__(self, folder: Path, amount: Amount):
        self._folder, self._amount = folder, amount
        self._step_s: dict[int, list[float]] = {1: [], 2: []}

    def beside_trainer(self, report: Report, precision: str) -> None:
        found = self._alone("benchmarks.training_trainer", precision=precision)
        tokens = self._amount.batch * self._amount.sequence
        for name in found["blocks"]:
            steps = [step for block in found["blocks"][name] for step in block]
            report.rows.append(_row(f"{name}, {precision}", steps, tokens))
        suffix = "" if precision == "fp32" else f"_{precision}"
        for more, ours, theirs in _RIVALS:
            ratios = [
                float(np.median(there) / np.median(here))
                for there, here in zip(found["blocks"][theirs], found["blocks"][ours], strict=True)
            ]
            interval = BOOTSTRAP.quantile([[ratio] for ratio in ratios], 0.5)
            name, bound = f"tokens_per_s_vs_hf_trainer{suffix}{more}", None if more else 1.0
            value = float(np.median(ratios))
            report.checks.append(Check(name, value, bound, 1.5, len(ratios), low=interval.low, high=interval.high))
        report.notes[f"beside_trainer_{precision}"] = {
            key: found[key] for key in ("parameters", "attention", "first_losses", "versions")
        }

    def data_parallel(self) -> None:
        for ranks in (1, 2):
            found = self._ranks("benchmarks.training_ranks", ranks)
            self._step_s[ranks].append(float(np.median(found["step_s"])))

    def tell_data_parallel(self, report: Report) -> None:
        tokens = self._amount.accumulation * self._amount.sequence
        for ranks, steps in self._step_s.items():
            report.rows.append(_row(f"data parallel {ranks}", steps, ranks * tokens))
        ratios = [alone / both for alone, both in zip(self._step_s[1], self._step_s[2], strict=True)]
        interval = BOOTSTRAP.quantile([[ratio] for ratio in ratios], 0.5)
        report.checks.append(
            Check(
                "dp_efficiency_2",
                float(np.median(ratios)),
                0.85,
                0.95,
                len(ratios),
                low=interval.low,
                high=interval.high,
            )
        )

    def loop(self, report: Report) -> None:
        with told_of(self._folder) as logged_points:
            found = self._ranks("benchmarks.training_loop", 1)
            assert logged_points() > 0, "the loop's curve did not reach MLflow"
        report.rows.append(_row("the training loop", found["loop_s"], found["tokens"]))
        overhead = outside_share(found["step_s"], found["loop_s"], found["saved_after"])
        report.checks.append(Check("overhead_share", overhead, 0.05, 0.01, len(found["loop_s"]), at_least=False))
        stall = stall_steps(found["loop_s"], found["saved_after"])
        report.checks.append(Check("checkpoint_stall_steps", stall, 1, 0, len(found["saved_after"]), at_least=False))
        report.notes["loop"] = {key: found[key] for key in ("parameters", "state_bytes", "written_s")}

    def _alone(self, module: str, **more: Any) -> dict[str, Any]:
        """Run a module in a process of its own, pinned to a core."""
        result = self._ask(**more)
        subprocess.run(
            [sys.executable, "-m", module, str(result)],
            check=True,
            env=rank_environment(1),
            stdout=subprocess.DEVNULL,
        )
        return json.loads(result.read_text())

    def _ranks(self, module: str, ranks: int) -> dict[str, Any]:
        result = self._ask()
        LocalLauncher().run(RankCommand(module=module, arguments=[str(result)], processes=ranks, threads=1))
        return json.loads(result.read_text())

    def _ask(self, **more: Any) -> Path:
        """A file that says what to do, and takes the result."""
        file = self._folder / "question.json"
        file.write_text(json.dumps(asdict(self._amount) | {"folder": str(self._folder)} | more))
        return file


@contextmanager
def told_of(folder: Path) -> Iterator[Callable[[], int]]:
    """What a step of the pipeline is given: an MLflow run for its curves, here in a database as on one machine, and a file for
    its progress. Yields what counts the points of the curve that arrived."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(uri)
    run_id = client.create_run(client.create_experiment("benchmark", str(folder / "artifacts"))).info.run_id
    told = {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_RUN_ID": run_id,
        PROGRESS_VARIABLE: str(folder / "progress.json"),
    }
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield lambda: len(client.get_metric_history(run_id, "train/coarse_loss"))
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def pin(core: int) -> None:
    """This process, to one of the cores that it may use."""
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})


def stall_steps(loop_s: Sequence[float], saved_after: Sequence[int]) -> float:
    """How many steps' time one state costs: what the first half of the steps from its saving to the next one's take beyond
    the median of the second half, over that; the median over all states. `loop_s` are the seconds of each step with what
    surrounds it, `saved_after` the numbers of the steps (from 1) after which a state was saved."""
    costs = []
    for window in _windows(len(loop_s), saved_after)[1:]:
        half = len(loop_s[window]) // 2
        usual = float(np.median(loop_s[window][half:]))
        costs.append(sum(seconds - usual for seconds in loop_s[window][:half]) / usual)
    return float(np.median(costs))


def outside_share(step_s: Sequence[float], loop_s: Sequence[float], saved_after: Sequence[int]) -> float:
    """Share of the loop's time that is none of forward, backward and optimizer: what the steps with all that surrounds them
    (`loop_s`) take beyond the steps alone (`step_s`), both in seconds.

    What a state costs while it is written is in the steps beside it: between one saving and the next, a step's own time is
    the median of the second half. A machine that grows slower or faster in the course of a run does so for both.
    """
    inside = 0.0
    for window in _windows(len(loop_s), saved_after):
        own = step_s[window]
        inside += len(own) * float(np.median(own[len(own) // 2 :]))
    return 1 - inside / sum(loop_s)


def _windows(steps: int, saved_after: Sequence[int]) -> list[slice]:
    """The steps before the first saving, and from each saving to the next: a state is saved at the end of its step."""
    borders = [0, *(number - 1 for number in saved_after), steps]
    return [slice(first, end) for first, end in pairwise(borders)]


def _row(name: str, steps_s: Sequence[float], tokens: float) -> Row:
    median = float(np.median(steps_s))
    p95 = float(np.quantile(steps_s, 0.95))
    return Row(name, 1000 * median, 1000 * p95, n=len(steps_s), more={"tokens_per_s": tokens / median})


def _planner() -> Check:
    """The largest error on a published training that no constant was fitted to."""
    errors = [abs(run.error) for run in RUNS if not run.calibrates]
    return Check("planner_max_error", max(errors), 0.20, 0.10, len(errors), at_least=False)

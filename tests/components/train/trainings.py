"""Tiny trainings with real ranks, and their ranks."""

import json
import time
from pathlib import Path

import psutil

from components.train.settings import TrainingSettings


def settings(**changes) -> TrainingSettings:
    base = {"steps": 40, "global_batch_size": 8, "precision": "fp32", "checkpoint_every_steps": 5, "log_every_steps": 1}
    return TrainingSettings.model_validate(base | changes)


def curve(checkpoint: Path) -> dict[int, float]:
    points = [json.loads(line) for line in (checkpoint / "curves.jsonl").read_text().splitlines()]
    return {point["step"]: point["coarse_loss"] for point in points if "coarse_loss" in point}


def wait_for_a_state(work: Path, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not list(work.glob("state-*")):
        assert time.monotonic() < deadline, "no state was saved"
        time.sleep(0.005)


def ranks_of(work: Path) -> list[psutil.Process]:
    """The living ranks of this test's own training, in the order of their start."""
    return [child for child in psutil.Process().children(recursive=True) if _is_rank_of(child, work)]


def _is_rank_of(process: psutil.Process, work: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return (
        str(work / "job.json") in command
        and "components.train.worker" in command
        and "torch.distributed.run" not in command
    )

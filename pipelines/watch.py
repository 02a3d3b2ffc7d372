"""What the steps of a run are doing, read from the files that they write."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

StepStatus = Literal["waiting", "running", "succeeded", "failed"]


@dataclass(frozen=True)
class StepState:
    """One step as it is now. `done` of `total` is its own measure of progress; `seconds` how long it has worked."""

    name: str
    status: StepStatus = "waiting"
    seconds: float = 0.0
    done: int = 0
    total: int = 0
    message: str = ""
    pace_s: float | None = None
    """Seconds for one of `total`, so far."""
    earlier: bool = False
    """Completed by an earlier start of the same run."""
    record: dict[str, Any] | None = None

    @property
    def remaining_s(self) -> float | None:
        """Time left for this step at its pace so far; `None` where it does not tell its progress."""
        return None if self.pace_s is None else self.pace_s * max(0, self.total - self.done)


def read_step(run_folder: Path, name: str, *, now: float, run_started: float) -> StepState:
    """The state of step `name`. A record from before `run_started` that is not complete belongs to an earlier start."""
    record = _read(run_folder / "steps" / f"{name}.json")
    if record is None:
        return StepState(name)
    earlier = record["started"] < run_started
    if record["status"] == "succeeded":
        return StepState(name, "succeeded", record["seconds"], earlier=earlier, record=record)
    if earlier:
        return StepState(name)
    if record["status"] == "failed":
        return StepState(name, "failed", record["seconds"], record=record)
    progress = _read(run_folder / "steps" / f"{name}.progress") or {}
    if progress.get("time", 0.0) < record["started"]:
        progress = {}
    return StepState(
        name,
        "running",
        now - record["started"],
        progress.get("done", 0),
        progress.get("total", 0),
        progress.get("message", ""),
        _pace(progress, now),
        record=record,
    )


def _pace(progress: dict[str, Any], now: float) -> float | None:
    begun = progress.get("begun")
    if not begun or not progress["total"] or progress["done"] <= begun["done"]:
        return None
    return (now - begun["time"]) / (progress["done"] - begun["done"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None

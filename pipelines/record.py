"""What is known of a run, on disk: `run.json` in its folder, and `last_run.json` for `emuflow status`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from common.errors import UsageError
from common.files import read_json, write_json
from common.home import Home
from common.redaction import redact
from components.gate.verdict import FILE_NAME as VERDICT_FILE
from pipelines.steps import steps_of

Status = Literal["running", "succeeded", "failed", "interrupted"]
FILE_NAME = "run.json"


@dataclass
class RunRecord:
    """One pipeline run. `settings` are the resolved ones, without secrets."""

    run_id: str
    preset: str
    settings: dict[str, Any]
    started: str
    code_digest: str = ""
    status: Status = "running"
    ended: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of each step, and of the whole (`total`, over all of its starts)."""
    peak_memory_mb: float = 0.0
    verdict: dict[str, Any] | None = None
    candidate: str | None = None
    version: str | None = None
    """The candidate's number in MLflow's registry."""
    stage: str | None = None
    """How far this run took it: candidate, staging or champion."""
    champion: dict[str, str | None] = field(default_factory=lambda: {"before": None, "after": None})
    paths: dict[str, str] = field(default_factory=dict)
    tracking: dict[str, Any] = field(default_factory=dict)
    """MLflow's ids: `parent` and one for each step."""
    provenance: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    measures: str | None = None
    """The package that this run measures once more; `None` for a run of the whole chain."""

    @property
    def pipeline(self) -> str:
        """The name of its graph."""
        return "emuflow-measure" if self.measures else "emuflow-retrain"

    @property
    def steps(self) -> tuple[str, ...]:
        return steps_of(self.settings, self.measures)

    @property
    def way_on(self) -> str:
        """The command after a failure or an interruption, and what it does."""
        if self.measures:
            return f"`emuflow measure {self.measures[:12]}` measures it again"
        return "`emuflow run --resume` goes on from here"

    def save(self, home: Home) -> None:
        """Write both files; a secret that got here is hidden."""
        content = redact(dataclasses.asdict(self))
        write_json(home.run(self.run_id) / FILE_NAME, content)
        write_json(home.last_run_file, content)

    @classmethod
    def load(cls, file: Path) -> Self:
        return cls(**read_json(file))


def last_run(home: Home) -> RunRecord | None:
    """The newest run under `home`, `None` where there was none."""
    return RunRecord.load(home.last_run_file) if home.last_run_file.is_file() else None


def measurements_of(home: Home, digest: str) -> list[str]:
    """The ids of the runs that measured the package `digest` once more, the newest first."""
    files = sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True)
    return [file.parent.name for file in files if read_json(file).get("measures") == digest]


def verdict_folders(home: Home) -> list[Path]:
    """Of every run that came to a verdict, whatever became of it; the oldest first."""
    return sorted(file.parent for file in home.last_run_file.parent.glob(f"*/verdict/{VERDICT_FILE}"))


def resumable_run(home: Home) -> RunRecord:
    """The last run of the whole chain, if it did not finish: a measurement is begun anew instead. Raises `UsageError`
    otherwise."""
    record = last_run(home)
    if record is not None and record.measures:
        files = sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True)
        record = next((each for each in map(RunRecord.load, files) if not each.measures), None)
    if record is None:
        raise UsageError("there is no run to resume", where=str(home.root), fix="start one: `emuflow run`")
    if record.status == "succeeded":
        raise UsageError(
            f"run {record.run_id} is complete: there is nothing to resume",
            where=str(home.root),
            fix="start a new one: `emuflow run`",
        )
    return record

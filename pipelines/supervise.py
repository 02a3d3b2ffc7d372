"""Start the process that runs the graph, follow its steps, and leave no process behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from common.errors import StepFailedError
from common.processes import adopt_orphans, die_with_parent, end_descendants
from common.redaction import redact_text
from components.step import RUN_FOLDER_VARIABLE, STEP_RUNS_VARIABLE
from pipelines.containers.engine import remove_containers
from pipelines.containers.images import IMAGE_VARIABLES
from pipelines.containers.step import container_log, read_end
from pipelines.display import make_display
from pipelines.provenance import CHECKOUT, code_digest
from pipelines.record import RunRecord
from pipelines.run_folder import read_platform
from pipelines.tracking import RunTracking
from pipelines.watch import StepState, read_step

_POLL_S = 0.25
_SHOWN_LINES = 30
_POLITE = {"OMP_WAIT_POLICY": "PASSIVE"}
"""On a busy machine OpenMP's spinning threads keep each other from working: a step took two to four times as long."""


def supervise(
    folder: Path,
    run: RunRecord,
    tracking: RunTracking,
    expected_s: Mapping[str, float],
    console: Console,
    lock: int,
) -> None:
    """Run the graph of the run in `folder` to its end and show it.

    `expected_s` is how long each step took before, `lock` the descriptor that holds the home. Raises `StepFailedError`.
    However this ends, every process that was started below it has ended, those in sessions of their own (torchrun's
    ranks, Triton) too, and every container of the run.
    """
    adopt_orphans()
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="emuflow-", ignore_cleanup_errors=True) as scratch:
        orchestrator = _start(folder, tracking, lock, scratch)
        try:
            with make_display(console) as display:
                while True:
                    code = orchestrator.poll()  # before the records are read: they are then the last ones
                    states = _read_steps(folder, run.steps, started, tracking)
                    display.update(states, time.time() - started, _remaining_s(states, expected_s))
                    if code is not None:
                        break
                    time.sleep(_POLL_S)
        finally:
            end_descendants()
            if read_platform(folder).runner == "containers":
                remove_containers(folder.parent.parent)
            _read_steps(folder, run.steps, started, tracking)
    if code != 0:
        failure, log = _failure(states, folder, code, run.way_on)
        _show_end(log, console)
        raise failure


def _read_steps(folder: Path, steps: Sequence[str], started: float, tracking: RunTracking) -> list[StepState]:
    """What the steps do now; those that have ended are told to the tracking server."""
    states = [read_step(folder, step, now=time.time(), run_started=started) for step in steps]
    for state in states:
        if state.record and state.status in ("succeeded", "failed"):
            tracking.step_ended(state.record, earlier=state.earlier)
    return states


def _start(folder: Path, tracking: RunTracking, lock: int, scratch: str) -> subprocess.Popen[bytes]:
    (folder / "logs").mkdir(exist_ok=True)
    inherited = {name: value for name, value in os.environ.items() if name != "MLFLOW_RUN_ID"}
    if read_platform(folder).runner == "subprocess":
        image = f"emuflow-python:{code_digest()[:16]}"  # a completed step is recognised by its code, too
        inherited |= dict.fromkeys(IMAGE_VARIABLES.values(), image)
    environment = (
        _POLITE
        | inherited
        | {
            RUN_FOLDER_VARIABLE: str(folder),
            STEP_RUNS_VARIABLE: json.dumps(tracking.runs),
            "EMUFLOW_RUN_ID": folder.name,
            "PYTHONUNBUFFERED": "1",
            "TMPDIR": scratch,  # what a killed step leaves there goes with it
        }
    )
    with (folder / "logs" / "pipeline.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.orchestrate", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=CHECKOUT,
            env=environment,
            pass_fds=(lock,),  # a run that was killed holds the home until its last process has ended
            start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which then ends all others
            preexec_fn=die_with_parent,
        )


def _failure(states: Sequence[StepState], folder: Path, code: int, way_on: str) -> tuple[StepFailedError, Path]:
    """What to raise, and the log that tells more."""
    end = read_end(folder)
    undone = [state for state in states if state.status != "succeeded"]
    stopped = next((state for state in undone if state.record), None)
    if stopped is None and end and end.exit_code:  # it failed before it could say anything itself
        stopped, log = StepState(end.step, "failed"), container_log(folder)
        log = log if log.is_file() else folder / "logs" / "pipeline.log"
    elif stopped is None:
        stopped, log = next(iter(undone), None), folder / "logs" / "pipeline.log"
    else:
        log = folder / "logs" / f"{stopped.name}.log"
    told = (stopped.record or {}).get("error") if stopped else None
    reasons = [told["message"] if told else "", end.reason if end else ""]
    what = "; ".join(reason for reason in reasons if reason)
    failure = StepFailedError(
        what or f"it ended without a result (the pipeline's exit code is {code})",
        where=f"step {stopped.name}" if stopped else "pipeline",
        fix=f"read {log}; then {way_on}",
    )
    return failure, log


def _show_end(log: Path, console: Console) -> None:
    """The log's last lines, for whoever has no other way to it."""
    lines = log.read_text(errors="replace").splitlines()[-_SHOWN_LINES:] if log.is_file() else []
    for line in lines:
        console.print(redact_text(line), markup=False, highlight=False, soft_wrap=True, style="dim")


def _remaining_s(states: Sequence[StepState], expected_s: Mapping[str, float]) -> float | None:
    """Seconds left of the run: the working step's own estimate, and earlier times of those that wait."""
    left = 0.0
    for state in states:
        known: float | None = 0.0
        if state.status == "running":
            known = state.remaining_s if state.remaining_s is not None else expected_s.get(state.name)
        elif state.status == "waiting":
            known = expected_s.get(state.name)
        if known is None:
            return None
        left += known
    return left

"""The harness around every step: its log, its record, its place in MLflow.

On one machine the pipeline's driver names a run folder in `EMUFLOW_RUN_FOLDER`; the step's output then goes to
`logs/<step>.log` there, and what became of it to `steps/<step>.json`, which the driver shows while it changes. On a
cluster there is no such folder: the output stays on standard output, and the step writes to the MLflow run that the
platform gave it (`MLFLOW_RUN_ID`).
"""

import contextlib
import dataclasses
import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from common.errors import EmuflowError, UsageError
from common.files import write_json
from common.processes import memory_kills
from common.progress import PROGRESS_VARIABLE
from common.redaction import redact, redact_text

RUN_FOLDER_VARIABLE = "EMUFLOW_RUN_FOLDER"
STEP_RUNS_VARIABLE = "EMUFLOW_STEP_RUNS"
"""JSON: each step's name to the MLflow run that the driver opened for it."""
STEP_IMAGE_VARIABLE = "EMUFLOW_STEP_IMAGE"
"""The image of the container that a step runs in, where whoever started it said so."""
RELEASE_URL_VARIABLE = "EMUFLOW_RELEASE_URL"
"""The release store's SQLAlchemy URL. It may hold a password, so it is never a parameter of the pipeline."""

EXPERIMENTS_URL_VARIABLE = "EMUFLOW_EXPERIMENTS_URL"
"""A team's own database for A/B tests and canaries; it may hold a password, too."""

_CHATTY = ("great_expectations", "onnxscript", "onnx_ir")
"""Libraries that tell of hundreds of their own decisions, among which a step's few lines would be lost."""
_TERMINATED = 128 + signal.SIGTERM
_log = logging.getLogger(__name__)


@dataclasses.dataclass
class StepRecord:
    """What is known of one step; `result` is what its function returned."""

    step: str
    status: str = "running"
    started: float = 0.0
    ended: float | None = None
    seconds: float | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    outputs: dict[str, str] = dataclasses.field(default_factory=dict)
    result: Any = None
    error: dict[str, Any] | None = None
    surroundings: dict[str, Any] = dataclasses.field(default_factory=lambda: _surroundings())


def _in_a_container() -> bool:
    """Whether this step's control group is its own: elsewhere it counts what happens to its neighbours, too."""
    return STEP_IMAGE_VARIABLE in os.environ or "KUBERNETES_SERVICE_HOST" in os.environ


def _surroundings() -> dict[str, Any]:
    """Who runs the step, and whether a mistake in it could change the system that it runs on."""
    read_only = bool(os.statvfs("/").f_flag & os.ST_RDONLY)
    return {"user": os.getuid(), "read_only_root": read_only, "image": os.environ.get(STEP_IMAGE_VARIABLE)}


@contextlib.contextmanager
def step(name: str, settings: str = "{}", **outputs: str) -> Iterator[StepRecord]:
    """Run a step's body inside its log and record. `outputs` are the paths of its artifacts, by their names.

    The body sets `record.result`. An exception is recorded and raised again, so that KFP sees the failure.
    """
    run_folder = os.environ.get(RUN_FOLDER_VARIABLE)
    folder = Path(run_folder) if run_folder else None
    _enter_platform(name, folder)
    kills_before = memory_kills()
    record = StepRecord(step=name, started=time.time(), settings=redact(json.loads(settings)), outputs=dict(outputs))
    _save(folder, record)
    try:
        yield record
        record.status = "succeeded"
        _link_outputs(folder, record)
    except BaseException as error:
        record.status, record.error = "failed", describe_error(error)
        if _in_a_container() and (kills := memory_kills() - kills_before):
            record.error["message"] += f" ({kills} of its processes were killed for memory)"
        _log.error("%s failed: %s", name, record.error["message"])
        if _tells_secrets(error):
            raise RuntimeError(record.error["message"]) from None  # the platform prints the whole chain of errors
        raise
    finally:
        record.ended = time.time()
        record.seconds = round(record.ended - record.started, 3)
        _save(folder, record)
        if folder is None:
            _log_to_injected_run(record)


def release_url() -> str:
    """The release store's address, from the environment. Raises `UsageError` where it is not given."""
    url = os.environ.get(RELEASE_URL_VARIABLE)
    if not url:
        raise UsageError(
            "the release store's address is not known",
            where=RELEASE_URL_VARIABLE,
            fix="give the steps this variable: the SQLAlchemy URL of a database",
        )
    return url


def describe_error(error: BaseException) -> dict[str, Any]:
    """An error in JSON: its class, its message without secrets and, of our own errors, where and what to do."""
    described = {"type": type(error).__name__, "message": redact_text(str(error)) or type(error).__name__}
    if isinstance(error, EmuflowError):
        described |= {"what": redact_text(error.what), "where": error.where, "fix": error.fix}
    return described


def result_values(result: Any) -> dict[str, Any]:
    """The plain values (numbers, words, truth) that a step's frozen dataclass holds, by name."""
    if not dataclasses.is_dataclass(result) or isinstance(result, type):
        return {}
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    flat = {name: value for name, value in fields.items() if isinstance(value, bool | int | float | str)}
    for name, value in fields.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items() if isinstance(inner, bool | int | float)}
    return flat


def _enter_platform(name: str, folder: Path | None) -> None:
    """Send this process's output to the step's log, and take the MLflow run that was opened for it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in _CHATTY:
        logging.getLogger(library).setLevel(logging.WARNING)
    signal.signal(signal.SIGTERM, _end)
    if folder is None:
        return
    log, records = folder / "logs" / f"{name}.log", folder / "steps"
    for parent in (log.parent, records):
        parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)  # file descriptors, not sys.stdout: torchrun and Triton inherit them
    os.dup2(descriptor, 2)
    os.close(descriptor)
    os.environ[PROGRESS_VARIABLE] = str(records / f"{name}.progress")
    runs = json.loads(os.environ.get(STEP_RUNS_VARIABLE, "{}"))
    if name in runs:
        os.environ["MLFLOW_RUN_ID"] = runs[name]


def _end(_signal_number: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds the step, so that its servers end and its temporary folders go."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(_TERMINATED)


def _tells_secrets(error: BaseException) -> bool:
    chain = "".join(traceback.format_exception(error))
    return redact_text(chain) != chain


def _save(folder: Path | None, record: StepRecord) -> None:
    if folder is not None:
        content = {
            **dataclasses.asdict(dataclasses.replace(record, result=None)),
            "result": result_values(record.result),
        }
        write_json(folder / "steps" / f"{record.step}.json", redact(_finite(content)))


def _finite(content: Any) -> Any:
    """NaN and infinity have no JSON form: they become their names."""
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, float) and content not in (float("inf"), float("-inf")) and content == content:
        return content
    return str(content) if isinstance(content, float) else content


def _link_outputs(folder: Path | None, record: StepRecord) -> None:
    """Give each artifact a short, stable name in the run folder: `<run>/verdict` and so on."""
    if folder is None:
        return
    for name, path in record.outputs.items():
        link = folder / name
        if link.is_symlink() or not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(path, folder))


def _log_to_injected_run(record: StepRecord) -> None:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return
    from components.tracking import log_step

    try:
        log_step(run_id, record.settings, result_values(record.result), record.seconds or 0.0, end=None)
    except Exception as error:  # noqa: BLE001  the tracking server's own errors have no common class
        _log.warning("MLflow did not take the record of step %s: %s", record.step, redact_text(str(error)))

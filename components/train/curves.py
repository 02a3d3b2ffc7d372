"""Training curves: one JSON line a point, and MLflow where the step was given a run."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from common.files import write_text
from common.redaction import redact_text

_OF_THE_STEP = ("step", "learning_rate")
_NODES_VARIABLE = "GROUP_WORLD_SIZE"
"""torchrun's, of each rank."""
_log = logging.getLogger(__name__)


class Curves:
    """Appends points to `curves.jsonl`, and to the MLflow run named by `MLFLOW_RUN_ID`, while training goes on.

    `last` is what the points before `first_step` say of each measure, the newest each.
    """

    def __init__(self, file: Path, first_step: int):
        self.file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        kept = [point for point in points(file) if point["step"] <= first_step]
        write_text(file, "".join(f"{json.dumps(point)}\n" for point in kept))
        self.last = {name: value for point in kept for name, value in point.items() if name not in _OF_THE_STEP}
        self._mlflow, self._run_id = _mlflow_client()
        if self._mlflow is None and int(os.environ.get(_NODES_VARIABLE, "1")) > 1:
            _log.warning("this host was given no MLflow run (MLFLOW_RUN_ID): the curve is in %s alone", file)

    def log(self, step: int, **values: float) -> None:
        with self.file.open("a") as handle:
            handle.write(json.dumps({"step": step, **values}) + "\n")
        if self._mlflow is not None:
            from mlflow.entities import Metric

            now_ms = int(time.time() * 1000)
            metrics = [Metric(f"train/{name}", value, now_ms, step) for name, value in values.items()]
            try:
                self._mlflow.log_batch(self._run_id, metrics=metrics)
            except Exception as error:  # noqa: BLE001  the tracking server's own errors have no common class
                _log.warning("MLflow did not take step %d of the curve: %s", step, redact_text(str(error)))


def _mlflow_client() -> tuple[Any, str | None]:
    run_id = os.environ.get("MLFLOW_RUN_ID")
    if not run_id:
        return None, None
    from mlflow import MlflowClient

    return MlflowClient(), run_id


def points(file: Path) -> list[dict[str, float]]:
    """What a file of curves holds; a line that was torn when the machine went down is none."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            _log.warning("%s: a line that cannot be read is left out", file)
    return found

"""A pipeline run in MLflow: one parent run, a nested run for each step, with the tags that KFP's own plugin sets.

The nested runs are opened before the steps start, so that a step finds its own in `MLFLOW_RUN_ID` as it would on a
cluster, and only the steps that need MLflow load it.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import TrackingError
from common.redaction import redact_text
from components.tracking import log_parameters, log_step

EXPERIMENT = "emuflow"
_log = logging.getLogger(__name__)
_ENDS = {"succeeded": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}


class RunTracking:
    """The MLflow runs of one pipeline run. Its server is the one that `MLFLOW_TRACKING_URI` names."""

    def __init__(self, runs: Mapping[str, str], parent: str):
        """`runs` is each step's run id, `parent` the run above them (`RunTracking.open` makes both)."""
        from mlflow import MlflowClient

        self.runs, self.parent = dict(runs), parent
        self._client = MlflowClient()
        self._ended: set[tuple[str, float]] = set()
        self._finished_before: set[str] = set()

    @classmethod
    def open(
        cls,
        run_id: str,
        steps: Sequence[str],
        settings: Mapping[str, Any],
        tags: Mapping[str, str],
        artifacts: Path | None,
    ) -> "RunTracking":
        """Make the parent run and the scheduled nested ones. Raises `TrackingError` where the server does not answer.

        `artifacts` is where a new experiment keeps its files, `None` for the server's own place.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            client = MlflowClient()
            experiment = _experiment(client, artifacts)
            shared = {**tags, "kfp.pipeline_run_id": run_id}
            parent = client.create_run(experiment, run_name=run_id, tags=shared).info.run_id
            log_parameters(client, parent, settings)
            client.log_dict(parent, dict(settings), "settings.json")
            runs = {}
            for step in steps:
                nested = {**shared, "mlflow.parentRunId": parent, "emuflow.step": step}
                runs[step] = client.create_run(experiment, run_name=step, tags=nested).info.run_id
                client.update_run(runs[step], status="SCHEDULED")
            return cls(runs, parent)
        except (MlflowException, OSError) as error:
            raise _unreachable(error) from None

    def begin_again(self) -> None:
        """Mark the parent run as running again, for a run that is resumed."""
        from mlflow.exceptions import MlflowException

        try:
            self._client.update_run(self.parent, status="RUNNING")
            for step, run in self.runs.items():
                if self._client.get_run(run).info.status == _ENDS["succeeded"]:
                    self._finished_before.add(step)
        except (MlflowException, OSError) as error:
            raise _unreachable(error) from None

    def step_ended(self, record: Mapping[str, Any], *, earlier: bool = False) -> None:
        """Log what a step left (`steps/<step>.json`) and close its run, once for each time that it worked.

        `earlier` is a step that an earlier start of the run completed. A server that is away is reported, not raised:
        the record is on disk, and promotion asks the server itself.
        """
        name, attempt = record["step"], (record["step"], record["started"])
        if attempt in self._ended or name not in self.runs or (earlier and name in self._finished_before):
            return
        self._ended.add(attempt)
        try:
            end = _ENDS[record["status"]]
            log_step(self.runs[name], record["settings"], record["result"], record["seconds"], end=end)
        except Exception as error:  # noqa: BLE001  the tracking server's own errors have no common class
            _log.warning("MLflow did not take the record of step %s: %s", name, redact_text(str(error)))

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str], files: Sequence[Path]) -> None:
        """Close the parent run with the verdict's numbers and its reports."""
        try:
            for name, value in metrics.items():
                self._client.log_metric(self.parent, name, value)
            for name, value in tags.items():
                self._client.set_tag(self.parent, name, value)
            for file in files:
                self._client.log_artifact(self.parent, str(file), "reports")
            self._client.set_terminated(self.parent, status=_ENDS[status])
        except Exception as error:  # noqa: BLE001  as above: the run itself is done
            _log.warning("MLflow did not take the end of the run: %s", redact_text(str(error)))


def _experiment(client: Any, artifacts: Path | None) -> str:
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(EXPERIMENT, artifact_location=artifacts.as_uri() if artifacts else None)


def _unreachable(error: Exception) -> TrackingError:
    return TrackingError(
        f"the tracking server does not answer: {redact_text(str(error)).splitlines()[0]}",
        where=redact_text(os.environ.get("MLFLOW_TRACKING_URI", "")),
        fix="start it, or correct MLFLOW_TRACKING_URI; then run again (`--resume` goes on with a run that was begun)",
    )

"""Writing to MLflow: what one step leaves in its run.

The tracking server is whatever `MLFLOW_TRACKING_URI` says. Nothing here is needed for a step's own work, so the
caller decides what an unreachable server means.
"""

import time
from collections.abc import Mapping
from typing import Any

_PARAMETERS_PER_CALL = 100
_LONGEST_VALUE = 6000


def log_step(
    run_id: str, settings: Mapping[str, Any], values: Mapping[str, Any], seconds: float, *, end: str | None
) -> None:
    """Log a step's (redacted) settings as parameters, its numbers as metrics and its words as tags.

    `end` closes the run with that status (`FINISHED`, `FAILED`, `KILLED`); `None` leaves it to whoever opened it.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, RunTag

    client = MlflowClient()
    log_parameters(client, run_id, settings)
    now_ms = int(time.time() * 1000)
    numbers = {"seconds": seconds} | {k: float(v) for k, v in values.items() if isinstance(v, bool | int | float)}
    words = {k: v for k, v in values.items() if isinstance(v, str)}
    client.log_batch(
        run_id,
        metrics=[Metric(name, value, now_ms, 0) for name, value in numbers.items()],
        tags=[RunTag(f"emuflow.{name}", value[:_LONGEST_VALUE]) for name, value in words.items()],
    )
    if end:
        client.set_terminated(run_id, status=end)


def log_parameters(client: Any, run_id: str, settings: Mapping[str, Any]) -> None:
    """Log nested settings as flat parameters (`masking.full_share`). A parameter that is already there stays."""
    from mlflow.entities import Param

    existing = client.get_run(run_id).data.params
    parameters = [Param(k, v) for k, v in flatten(settings).items() if k not in existing]
    for start in range(0, len(parameters), _PARAMETERS_PER_CALL):
        client.log_batch(run_id, params=parameters[start : start + _PARAMETERS_PER_CALL])


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b` to text."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = str(value)[:_LONGEST_VALUE]
    return flat

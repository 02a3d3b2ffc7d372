"""The names of the steps, in the order of the graph."""

from collections.abc import Mapping
from typing import Any

STEPS = (
    "ingest",
    "validate",
    "curate",
    "validate-curated",
    "tokenize",
    "train",
    "calibrate",
    "export",
    "judge",
    "benchmark",
    "gate",
    "promote",
)


MEASURING_STEPS = ("benchmark", "gate", "promote")


def steps_of(settings: Mapping[str, Any], measures: str | None = None) -> tuple[str, ...]:
    """The steps of a run with these settings (as JSON): `adapt` is one of them where it is switched on. A run that
    `measures` a package which is there has the last ones only."""
    if measures:
        return MEASURING_STEPS
    if not settings.get("adaptation", {}).get("enabled", False):
        return STEPS
    after_training = STEPS.index("train") + 1
    return (*STEPS[:after_training], "adapt", *STEPS[after_training:])


def step_of_task(task: str) -> str:
    """The step that a task of the graph is: kfp numbers the tasks of one component, and `validate` has two."""
    return {"validate-2": "validate-curated"}.get(task, task)

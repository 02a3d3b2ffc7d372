"""The names of the steps, in the order of the graph."""

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


def step_of_task(task: str) -> str:
    """The step that a task of the graph is: kfp numbers the tasks of one component, and `validate` has two."""
    return {"validate-2": "validate-curated"}.get(task, task)

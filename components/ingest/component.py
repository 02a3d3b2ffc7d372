"""KFP interface of the ingest step."""

from kfp.dsl import Dataset, Output

from components.interface import component


@component()
def ingest(
    settings: str,
    parent_evaluation_set: str,
    work: str,
    run_id: str,
    samples: Output[Dataset],
    evaluation_set: Output[Dataset],
):
    """Read the data into the Sample table, and freeze the evaluation set before anything is learned."""
    from pathlib import Path

    from components.ingest.ingest import ingest as run
    from components.ingest.settings import IngestSettings
    from components.step import step

    with step("ingest", settings, samples=samples.path, evaluation_set=evaluation_set.path) as record:
        record.result = run(
            IngestSettings.parse_json(settings),
            Path(work) / run_id / "ingest",
            Path(samples.path),
            Path(evaluation_set.path),
            Path(parent_evaluation_set) if parent_evaluation_set else None,
        )

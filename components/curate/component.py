"""KFP interface of the curate step."""

from kfp.dsl import Dataset, Input, Output

from components.interface import component


@component()
def curate(
    settings: str,
    samples: Input[Dataset],
    evaluation_set: Input[Dataset],
    validation: Input[Dataset],
    curated: Output[Dataset],
):
    """Drop what must not be learned from, and keep every dropped row with its reason."""
    from pathlib import Path

    from components.curate.curate import curate as run
    from components.curate.settings import CurateSettings
    from components.step import step

    with step("curate", settings, curated=curated.path) as record:
        record.result = run(
            CurateSettings.parse_json(settings),
            Path(samples.path),
            Path(evaluation_set.path),
            Path(validation.path),
            Path(curated.path),
        )

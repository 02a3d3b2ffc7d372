"""KFP interface of the validate step."""

from kfp.dsl import Dataset, Input, Output

from components.interface import component


@component()
def validate(settings: str, stage: str, data_docs: str, table: Input[Dataset], validation: Output[Dataset]):
    """Check a table against the Sample contract; `stage` is `raw`, or `curated`, where contents are unique too."""
    from pathlib import Path

    from components.step import step
    from components.validate.settings import ValidateSettings
    from components.validate.validate import validate as run

    curated = stage == "curated"
    name, artifact = ("validate-curated", "validation_curated") if curated else ("validate", "validation")
    with step(name, settings, **{artifact: validation.path}) as record:
        record.result = run(
            ValidateSettings.parse_json(settings),
            Path(table.path),
            Path(validation.path),
            Path(data_docs),
            curated,
        )

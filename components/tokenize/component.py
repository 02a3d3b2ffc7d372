"""KFP interface of the tokenize step."""

from kfp.dsl import Dataset, Input, Model, Output

from components.interface import component


@component()
def tokenize(
    settings: str,
    parent_tokenizers: str,
    curated: Input[Dataset],
    validation: Input[Dataset],
    evaluation_set: Input[Dataset],
    tokenizers: Output[Model],
    shards: Output[Dataset],
):
    """Make or reuse the lineage's tokenizers and cut the data into token shards."""
    from pathlib import Path

    from components.step import step
    from components.tokenize.settings import TokenizerSettings
    from components.tokenize.tokenize import tokenize as run

    with step("tokenize", settings, tokenizers=tokenizers.path, shards=shards.path) as record:
        record.result = run(
            TokenizerSettings.parse_json(settings),
            Path(curated.path),
            Path(validation.path),
            Path(evaluation_set.path),
            Path(parent_tokenizers) if parent_tokenizers else None,
            Path(tokenizers.path),
            Path(shards.path),
        )

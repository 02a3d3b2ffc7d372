"""KFP interface of the train step."""

from kfp.dsl import Dataset, Input, Model, Output

from components.interface import component


@component()
def train(
    settings: str,
    model: str,
    parent_checkpoint: str,
    work: str,
    run_id: str,
    launcher: str,
    shards: Input[Dataset],
    tokenizers: Input[Model],
    checkpoint: Output[Model],
):
    """Train the generator; an interrupted training goes on from the newest state in `work`."""
    from pathlib import Path

    from components.step import step
    from components.train.hosts import launcher_of
    from components.train.settings import LauncherSettings, TrainingSettings
    from components.train.train import train as run
    from model.transformer.config import ModelSettings

    with step("train", settings, checkpoint=checkpoint.path) as record:
        record.result = run(
            TrainingSettings.parse_json(settings),
            ModelSettings.parse_json(model),
            Path(shards.path),
            Path(tokenizers.path),
            Path(parent_checkpoint) if parent_checkpoint else None,
            Path(work) / run_id / "train",
            Path(checkpoint.path),
            launcher_of(LauncherSettings.parse_json(launcher)),
        )

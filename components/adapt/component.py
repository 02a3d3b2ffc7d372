"""KFP interface of the adapt step."""

from kfp.dsl import Dataset, Input, Model, Output

from components.interface import component


@component()
def adapt(
    settings: str,
    work: str,
    run_id: str,
    launcher: str,
    trained: Input[Model],
    shards: Input[Dataset],
    tokenizers: Input[Model],
    checkpoint: Output[Model],
):
    """Make a next-token checkpoint a parallel one; an interrupted adaptation goes on from the newest state in `work`."""
    from pathlib import Path

    from components.adapt.adapt import adapt as run
    from components.adapt.settings import AdaptationSettings
    from components.step import step
    from components.train.hosts import launcher_of
    from components.train.settings import LauncherSettings

    with step("adapt", settings, checkpoint=checkpoint.path) as record:
        record.result = run(
            AdaptationSettings.parse_json(settings),
            Path(trained.path),
            Path(shards.path),
            Path(tokenizers.path),
            Path(work) / run_id / "adapt",
            Path(checkpoint.path),
            launcher_of(LauncherSettings.parse_json(launcher)),
        )

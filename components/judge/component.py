"""KFP interface of the judge step."""

from kfp.dsl import Dataset, Input, Model, Output

from components.interface import component


@component()
def judge(settings: str, cache: str, evaluation_set: Input[Dataset], trained_judge: Output[Model]):
    """Train what reads the images of the benchmark, once for each recipe; nothing for a user's own data."""
    from pathlib import Path

    from components.judge.judge import judge as run
    from components.judge.settings import JudgeSettings
    from components.step import step

    with step("judge", settings, trained_judge=trained_judge.path) as record:
        record.result = run(
            JudgeSettings.parse_json(settings), Path(evaluation_set.path), Path(cache), Path(trained_judge.path)
        )

"""KFP interface of the calibrate step."""

from kfp.dsl import Dataset, Input, Model, Output

from components.interface import component


@component()
def calibrate(settings: str, checkpoint: Input[Model], shards: Input[Dataset], engine: Output[Model]):
    """Turn the checkpoint into ONNX graphs, full-precision and INT8."""
    from pathlib import Path

    from components.calibrate.calibrate import calibrate as run
    from components.calibrate.settings import CalibrationSettings
    from components.step import step

    with step("calibrate", settings, engine=engine.path) as record:
        record.result = run(
            CalibrationSettings.parse_json(settings), Path(checkpoint.path), Path(shards.path), Path(engine.path)
        )

"""KFP interface of the gate step."""

from kfp.dsl import Artifact, Input, Output

from components.interface import component


@component()
def gate(settings: str, measurements: Input[Artifact], verdict: Output[Artifact]):
    """Judge the measurements by the policy; a rejected candidate is a verdict, not a failure."""
    from pathlib import Path

    from components.gate.gate import gate as run
    from components.gate.settings import GateSettings
    from components.step import step

    with step("gate", settings, verdict=verdict.path) as record:
        record.result = run(GateSettings.parse_json(settings), Path(measurements.path), Path(verdict.path))

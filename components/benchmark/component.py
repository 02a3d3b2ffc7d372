"""KFP interface of the benchmark step."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.interface import TRITON_IMAGE, component


@component(TRITON_IMAGE)
def benchmark(
    settings: str,
    champion: str,
    package_store: str,
    key_folder: str,
    exported: Input[Artifact],
    evaluation_set: Input[Dataset],
    tokenizers: Input[Model],
    judge: Input[Model],
    measurements: Output[Artifact],
):
    """Measure the candidate, its full-precision form and the champion side by side on a real Triton server."""
    from pathlib import Path

    from components.benchmark.benchmark import benchmark as run
    from components.benchmark.settings import BenchmarkSettings
    from components.step import step

    with step("benchmark", settings, measurements=measurements.path) as record:
        record.result = run(
            BenchmarkSettings.parse_json(settings),
            Path(exported.path),
            Path(package_store),
            Path(key_folder),
            champion or None,
            Path(evaluation_set.path),
            Path(tokenizers.path),
            Path(judge.path),
            Path(measurements.path),
        )

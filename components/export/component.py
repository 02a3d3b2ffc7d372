"""KFP interface of the export step."""

from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.interface import TRITON_IMAGE, component


@component(TRITON_IMAGE)
def export(
    settings: str,
    decoding: str,
    provenance: str,
    run_id: str,
    key_folder: str,
    package_store: str,
    engine: Input[Model],
    curated: Input[Dataset],
    evaluation_set: Input[Dataset],
    exported: Output[Artifact],
):
    """Build the signed model packages and check that a real server loads the candidate and answers."""
    import json
    from pathlib import Path

    from common.files import read_json
    from components.export.export import export as run
    from components.export.settings import DecodingSettings, ExportSettings
    from components.step import step
    from serving.package.manifest import Provenance

    with step("export", settings, exported=exported.path) as record:
        record.result = run(
            ExportSettings.parse_json(settings),
            DecodingSettings.parse_json(decoding),
            Path(engine.path),
            Provenance(
                **json.loads(provenance),
                run_id=run_id,
                data_digest=read_json(Path(curated.path) / "report.json")["table_sha256"],
                evaluation_digest=read_json(Path(evaluation_set.path) / "evaluation.json")["digest"],
                tokenizers_digest=read_json(Path(engine.path) / "calibration.json")["tokenizers_digest"],
            ),
            Path(key_folder),
            Path(package_store),
            Path(exported.path),
        )

"""A package of a kept checkpoint, as the pipeline exports it with its default settings."""

import shutil
from dataclasses import asdict
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.decode_rows import calibration_prompts
from benchmarks.precision import Precision, export
from benchmarks.report import commit
from common.files import write_json
from components.calibrate.engine import generator_description
from components.export.export import runtime_options
from components.export.settings import DecodingSettings, ExportSettings
from model.quantization.export_onnx import engine_graphs
from model.quantization.fuse import DRAW
from model.quantization.split import split_prefill
from model.quantization.weights_pool import pool_weights
from serving.package.builder import build_package
from serving.package.manifest import Provenance

_UNKNOWN = "0" * 64


def build(
    name: str, precision: Precision, decoding: DecodingSettings, settings: ExportSettings, work: Path, key_folder: Path
) -> Path:
    """The package folder of the checkpoint `name`, in `work/packages`."""
    generator, tokenizers = checkpoints.load(name), checkpoints.load_tokenizers()
    engine = work / "engine"
    graphs = engine / precision
    graphs.mkdir(parents=True)
    prompts = calibration_prompts(tokenizers, generator.config.text_length) if precision == "int8" else ()
    export(generator, tokenizers.visual, graphs, next_token=False, prompts=prompts)
    pool_weights(graphs, (*engine_graphs(len(generator.config.grids) - 1), DRAW, *split_prefill(graphs)))
    write_json(engine / "generator.json", generator_description(generator.config, tokenizers))
    write_json(engine / "calibration.json", {})
    shutil.copytree(checkpoints.STORE / "tokenizers" / "text", engine / "tokenizers" / "text")
    provenance = Provenance(
        run_id="benchmark",
        preset="quickstart",
        git_commit=commit(),
        image_digest=None,
        data_digest=_UNKNOWN,
        evaluation_digest=_UNKNOWN,
        tokenizers_digest=tokenizers.digest,
        settings_digest=_UNKNOWN,
        parent_package=None,
    )
    return build_package(
        engine,
        precision,
        decoding=asdict(decoding.options()),
        runtime=runtime_options(settings),
        provenance=provenance,
        key_folder=key_folder,
        package_store=work / "packages",
    )[0]

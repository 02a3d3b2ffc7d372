"""Engines and packages of kept checkpoints, as the pipeline exports them with its default settings."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import checkpoints
from benchmarks.decode_rows import calibration_prompts
from benchmarks.precision import Precision, export
from benchmarks.report import commit
from common.files import write_json
from components.calibrate.engine import block_sizes, generator_description
from components.export.export import runtime_options
from components.export.settings import DecodingSettings, ExportSettings
from model.quantization.export_onnx import engine_graphs, transformer_graphs
from model.quantization.fuse import DRAW
from model.quantization.split import split_prefill
from model.quantization.weights_pool import pool_weights
from model.transformer.model import Generator
from serving.package.builder import build_package
from serving.package.manifest import Provenance

UNKNOWN = "0" * 64
"""In the place of a digest that nobody knows."""


def build(
    name: str, precision: Precision, decoding: DecodingSettings, settings: ExportSettings, work: Path, key_folder: Path
) -> Path:
    """The package folder of the checkpoint `name`, in `work/packages`; its engine lies in `work/engine`."""
    write_engine(checkpoints.load(name), work / "engine", [precision])
    return build_package(
        work / "engine",
        precision,
        decoding=asdict(decoding.options()),
        runtime=runtime_options(settings),
        provenance=provenance(),
        key_folder=key_folder,
        package_store=work / "packages",
    )[0]


def write_engine(generator: Generator, engine: Path, precisions: Sequence[Precision]) -> None:
    """What the calibrate step leaves of a model with the kept tokenizers, in the given precisions; without held-out losses."""
    tokenizers, stages = checkpoints.load_tokenizers(), len(generator.config.grids) - 1
    for precision in precisions:
        graphs = engine / precision
        graphs.mkdir(parents=True)
        prompts = calibration_prompts(tokenizers, generator.config.text_length) if precision == "int8" else ()
        export(generator, tokenizers.visual, graphs, next_token=False, prompts=prompts)
        pool_weights(graphs, (*engine_graphs(stages), DRAW, *split_prefill(graphs)))
    report: dict[str, Any] = dict(tokenizers.metrics)
    if {"fp32", "int8"} <= set(precisions):
        sizes = block_sizes(engine / "fp32", engine / "int8", transformer_graphs(stages))
        report["block_bytes"] = sizes.describe()
    write_json(engine / "generator.json", generator_description(generator.config, tokenizers))
    write_json(engine / "calibration.json", report)
    shutil.copytree(checkpoints.STORE / "tokenizers" / "text", engine / "tokenizers" / "text")


def provenance(run_id: str = "benchmark", evaluation_digest: str = UNKNOWN) -> Provenance:
    """Of a package that no run made."""
    return Provenance(
        run_id=run_id,
        preset="quickstart",
        git_commit=commit(),
        image_digest=None,
        data_digest=UNKNOWN,
        evaluation_digest=evaluation_digest,
        tokenizers_digest=checkpoints.load_tokenizers().digest,
        settings_digest=UNKNOWN,
        parent_package=None,
    )

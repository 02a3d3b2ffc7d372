"""The calibrate step: a checkpoint becomes an engine, in full precision and in INT8."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import DigestMismatchError
from common.files import atomic_path, read_json, sha256_file, write_json
from common.progress import enter_phase
from components.calibrate.settings import CalibrationSettings


@dataclass(frozen=True)
class CalibrationResult:
    """What the step reports."""

    block_bytes_ratio: float
    engine_bytes_ratio: float
    output_error: dict[str, float]
    """Relative L2 error of INT8 against full precision, by graph."""
    agreement: dict[str, float]
    """Share of the positions whose most likely token is the same in both precisions, by graph with logits."""
    full_precision_layers: dict[str, int]
    """Layers that stay in full precision because INT8 would have been too far off, by graph."""


def calibrate(settings: CalibrationSettings, checkpoint: Path, shards: Path, engine: Path) -> CalibrationResult:
    """Write `engine/`: both precisions of all graphs, `generator.json`, `calibration.json`, the text tokenizer.

    Raises `DigestMismatchError` where a shard is not the one that was written or the shards were cut with other
    tokenizers than the checkpoint's, `QuantizationError` naming a layer that cannot be quantized or a graph that comes
    out too far from fp32.
    """
    from components.calibrate.engine import (
        block_sizes,
        check_engine_coverage,
        engine_sizes,
        generator_description,
        quantize_engine,
        within_bound,
    )
    from components.calibrate.heldout import describe_heldout
    from components.calibrate.prompts import prompt_batches
    from model.checkpoint import WEIGHTS_FILE, load_checkpoint
    from model.data.shards import Shards, verify_shards
    from model.decoding.loop import DecodingOptions
    from model.quantization.export_onnx import engine_graphs, export_graphs, transformer_graphs
    from model.quantization.fuse import DRAW, fuse_graphs
    from model.quantization.inference import with_plain_tables
    from model.quantization.observe import observe
    from model.quantization.smoothquant import fold_smoothing
    from model.quantization.split import split_prefill
    from model.quantization.weights_pool import pool_weights
    from model.tokenizers.bundle import TokenizerBundle

    verify_shards(shards)
    generator = load_checkpoint(checkpoint)
    grids = generator.config.grids
    graphs = engine_graphs(len(grids) - 1)
    phases = _Phases(len(graphs) + 4)
    tokenizers = TokenizerBundle.load(checkpoint / "tokenizers")
    train, heldout = Shards(shards, "train"), Shards(shards, "heldout")
    if train.tokenizers_digest != tokenizers.digest:
        raise DigestMismatchError(
            "the shards were cut with other tokenizers than the checkpoint's",
            where=str(shards),
            fix="run the tokenize step again",
        )

    phases.begin("decoding the calibration prompts")
    options = DecodingOptions(coarse_steps=settings.coarse_steps, temperature=settings.temperature)
    prompts = prompt_batches(train, settings.prompts, settings.batch_size, settings.seed)
    unseen = prompt_batches(heldout, settings.measured_prompts, settings.batch_size, settings.seed)
    seen = observe(generator, prompts, options, settings.seed)
    fold_smoothing(generator, seen.maxima, settings.smoothing_alpha)
    # Decoded again after the fold: it changes the basis of the cached values that the graphs are fed.
    calibration = observe(generator, prompts, options, settings.seed)
    measured = observe(generator, unseen, options, settings.seed)

    with atomic_path(engine) as temporary:
        fp32, int8 = temporary / "fp32", temporary / "int8"
        export_graphs(
            with_plain_tables(generator),
            tokenizers.visual,
            fp32,
            lambda graph: phases.begin(f"exporting {graph}"),
        )
        phases.begin("quantizing")
        layers = quantize_engine(settings, fp32, int8, calibration.feeds, graphs)
        check_engine_coverage(settings, fp32, layers, measured.feeds)
        phases.begin("comparing INT8 with full precision")
        kept = within_bound(settings, fp32, int8, calibration.feeds, measured.feeds, layers)
        fidelity = {graph: found.fidelity for graph, found in kept.items()}
        blocks = block_sizes(fp32, int8, transformer_graphs(len(grids) - 1)).describe()
        for folder in (fp32, int8):
            fuse_graphs(folder, grids, generator.config.visual_vocabulary)
            pool_weights(folder, (*graphs, DRAW, *split_prefill(folder)))
        whole = engine_sizes(fp32, int8).describe()
        trained = read_json(checkpoint / "training.json")
        description = generator_description(generator.config, tokenizers, trained.get("unconditional_share", 0.0))
        write_json(temporary / "generator.json", description)
        phases.begin("scoring the held-out samples")
        scored = describe_heldout(settings, temporary, description, heldout, generator)
        shutil.copytree(checkpoint / "tokenizers" / "text", temporary / "tokenizers" / "text")
        write_json(
            temporary / "calibration.json",
            {
                "block_bytes": blocks,
                "engine_bytes": whole,
                "fidelity": {graph: asdict(found) for graph, found in fidelity.items()},
                "full_precision": {graph: [asdict(layer) for layer in found.put_back] for graph, found in kept.items()},
                "prompts": {"calibration": sum(map(len, prompts)), "measured": sum(map(len, unseen))},
                "settings": settings.model_dump(mode="json"),
                "tokenizers_digest": tokenizers.digest,
                "checkpoint_digest": sha256_file(checkpoint / WEIGHTS_FILE),
                "heldout": scored,
                **tokenizers.metrics,
            },
        )
    phases.begin("calibrated")
    return CalibrationResult(
        block_bytes_ratio=blocks["ratio"],
        engine_bytes_ratio=whole["ratio"],
        output_error={graph: found.output for graph, found in fidelity.items()},
        agreement={graph: found.agreement for graph, found in fidelity.items() if found.agreement is not None},
        full_precision_layers={graph: len(found.put_back) for graph, found in kept.items()},
    )


class _Phases:
    """Reports how far the step is."""

    def __init__(self, count: int):
        self._done, self._count = 0, count

    def begin(self, message: str) -> None:
        enter_phase(self._done, self._count, message)
        self._done += 1

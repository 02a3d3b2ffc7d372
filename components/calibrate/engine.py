"""The INT8 half of an engine, and what is written about it."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from common.errors import QuantizationError
from common.files import files_under
from components.calibrate.fallback import Kept, keep_within
from components.calibrate.settings import CalibrationSettings
from model.quantization.observe import Feeds
from model.quantization.ranges import Ranges, check_coverage, input_ranges
from model.quantization.size import block_bytes
from model.quantization.static_int8 import quantizable_layers, quantize_graph
from model.tokenizers.bundle import TokenizerBundle
from model.transformer.config import GeneratorConfig


def quantize_engine(
    settings: CalibrationSettings, fp32: Path, int8: Path, calibration: Feeds, graphs: Sequence[str]
) -> dict[str, Ranges]:
    """Write the INT8 graphs. Returns the quantized layers of each with what they were calibrated to; a graph that has none is
    copied and left out. Raises `QuantizationError` naming a layer that cannot be calibrated."""
    int8.mkdir()
    layers = {}
    for graph in graphs:
        source = fp32 / f"{graph}.onnx"
        found = quantizable_layers(onnx.load(source), heads=settings.quantize_heads)
        if found:
            layers[graph] = quantize_graph(source, int8 / source.name, calibration[graph], found, settings.percentile)
        else:
            shutil.copyfile(source, int8 / source.name)
    return layers


def check_engine_coverage(
    settings: CalibrationSettings, fp32: Path, calibrated: Mapping[str, Ranges], measured: Feeds
) -> None:
    """Raises `QuantizationError` naming a layer whose calibrated range held-out data leaves by more than the settings allow."""
    for graph, ranges in calibrated.items():
        elsewhere = input_ranges(fp32 / f"{graph}.onnx", measured[graph], ranges)
        check_coverage(ranges, elsewhere, settings.largest_range_excess)


def within_bound(
    settings: CalibrationSettings,
    fp32: Path,
    int8: Path,
    calibration: Feeds,
    measured: Feeds,
    layers: Mapping[str, Iterable[str]],
) -> dict[str, Kept]:
    """Every graph near enough to full precision, on inputs that were not calibrated with; layers that cost too much are
    put back into it.

    Raises `QuantizationError` where that leaves no layer of a graph quantized: then something else is wrong with it.
    """
    kept = {}
    for graph in layers:
        name = f"{graph}.onnx"
        found = kept[graph] = keep_within(
            settings,
            fp32 / name,
            int8 / name,
            calibration[graph],
            measured[graph],
            list(layers[graph]),
        )
        if not found.layers:
            worst = found.put_back[0]
            raise QuantizationError(
                f"no layer can be INT8 within the allowed error of {settings.largest_output_error}; "
                f"the costliest is {worst.layer} ({worst.alone:.3f} by itself)",
                where=graph,
                fix="check the calibration data, or raise calibration.largest_output_error",
            )
    return kept


@dataclass(frozen=True)
class PrecisionSizes:
    """Bytes in both precisions."""

    fp32: int
    int8: int

    def describe(self) -> dict[str, float]:
        return {"fp32": self.fp32, "int8": self.int8, "ratio": self.int8 / self.fp32}


def block_sizes(fp32: Path, int8: Path, graphs: Sequence[str]) -> PrecisionSizes:
    """Of the transformer blocks in these graphs alone."""
    return PrecisionSizes(block_bytes(fp32, graphs), block_bytes(int8, graphs))


def engine_sizes(fp32: Path, int8: Path) -> PrecisionSizes:
    """Of all files."""
    return PrecisionSizes(*(sum(path.stat().st_size for path in files_under(folder)) for folder in (fp32, int8)))


def generator_description(
    config: GeneratorConfig, tokenizers: TokenizerBundle, unconditional_share: float = 0.0
) -> dict[str, Any]:
    """`generator.json`: what a runtime must know to feed the graphs.

    `unconditional_share` is that of the checkpoint's `training.json`: without one the runtime refuses guidance.
    """
    fine = list(config.grids[-1])
    return {
        "text_length": config.text_length,
        "text_vocabulary": config.text_vocabulary,
        "special": tokenizers.text.special,
        "coarse_grid": list(config.coarse_grid),
        "fine_grid": fine,
        "plan_noise_shape": [config.plan_tokens, sum(config.visual_levels)] if config.plan_tokens else None,
        "visual_vocabulary": config.visual_vocabulary,
        "mask_id": config.visual_vocabulary,
        "image_size": [side * tokenizers.visual.config.patch_size for side in fine],
        "layers": config.num_hidden_layers,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "unconditional_share": unconditional_share,
    }

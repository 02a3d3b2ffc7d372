"""Layers back to full precision, the costliest first, until INT8 is as near to it as the settings ask."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from components.calibrate.settings import CalibrationSettings
from model.quantization.fidelity import GraphFidelity, measure_fidelity
from model.quantization.static_int8 import quantize_graph

log = logging.getLogger(__name__)
Inputs = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class PutBack:
    """A layer that computes in full precision after all."""

    layer: str
    alone: float
    """Relative L2 error of the graph's output where nothing but this layer is quantized."""
    output: float
    """The same with this layer, and those put back before it, in full precision."""


@dataclass(frozen=True)
class Kept:
    """A graph that is near enough: what of it is quantized, how far it is off, and what was put back, in order."""

    layers: list[str]
    fidelity: GraphFidelity
    put_back: list[PutBack]


def keep_within(
    settings: CalibrationSettings,
    full: Path,
    quantized: Path,
    calibration: Inputs,
    measured: Inputs,
    layers: Sequence[str],
) -> Kept:
    """Quantize the graph `full` into `quantized`, whose `layers` were quantized before, with as few layers in full
    precision as it takes for `settings.largest_output_error` (on the inputs `measured`).

    The order is that of the layers' own costs, each measured by itself: one that is itself harmless may show a large
    error because of those before it. Without a quantized layer the error is zero, so this always ends.
    """
    bound = settings.largest_output_error
    found = Kept(list(layers), measure_fidelity(full, quantized, measured, layers), [])
    if found.fidelity.output <= bound:
        return found
    log.info("%s: INT8 is %.3f off, allowed is %.3f", full.stem, found.fidelity.output, bound)
    alone = _alone(settings, full, calibration, measured, layers)
    for layer in sorted(alone, key=lambda name: alone[name], reverse=True):
        remaining = [other for other in found.layers if other != layer]
        if remaining:
            quantize_graph(full, quantized, calibration, remaining, settings.percentile)
        else:
            shutil.copyfile(full, quantized)
        fidelity = measure_fidelity(full, quantized, measured, remaining)
        log.info("%s: %s (%.3f alone) stays in full precision: %.3f", full.stem, layer, alone[layer], fidelity.output)
        found = Kept(remaining, fidelity, [*found.put_back, PutBack(layer, alone[layer], fidelity.output)])
        if fidelity.output <= bound:
            break
    return found


def _alone(
    settings: CalibrationSettings, full: Path, calibration: Inputs, measured: Inputs, layers: Sequence[str]
) -> dict[str, float]:
    """The output's error with each layer as the only one that is quantized; infinite where it is not a number."""
    errors = {}
    with TemporaryDirectory(prefix="emuflow-fallback-") as folder:
        for layer in layers:
            single = Path(folder) / full.name
            quantize_graph(full, single, calibration, [layer], settings.percentile)
            error = measure_fidelity(full, single, measured, [layer]).output
            errors[layer] = error if np.isfinite(error) else float("inf")
    return errors

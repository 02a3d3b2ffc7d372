"""What goes into the quantized layers of a graph: the ranges that their scales are made of, and what makes one useless."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from common.errors import QuantizationError

Ranges = dict[str, float]
"""The largest absolute input of each layer, by its name."""
_FIX = "check the checkpoint and the calibration samples"


def input_ranges(path: Path, feeds: Sequence[Mapping[str, np.ndarray]], layers: Iterable[str]) -> Ranges:
    """Run the graph over `feeds` and look at what goes into the named layers.

    Raises `QuantizationError` naming a layer whose input is NaN, infinite or zero on all of them, or that saw none: a
    quantizer makes a scale of any of these, and nobody could tell it from a good one.
    """
    model = onnx.load(path)
    nodes = {node.name: node for node in model.graph.node}
    inputs = {layer: nodes[layer].input[0] for layer in layers}
    if not inputs:
        return {}
    session, names = _showing(model, inputs.values()), list(dict.fromkeys(inputs.values()))
    largest: dict[str, float] = {}
    for feed in feeds:
        for name, values in zip(names, session.run(names, dict(feed)), strict=True):
            # Not `max(…)`: of a number and NaN it keeps whichever comes first.
            largest[name] = float(np.maximum(largest.get(name, 0.0), np.abs(np.asarray(values)).max(initial=0.0)))
    ranges = {layer: largest.get(name) for layer, name in inputs.items()}
    return {layer: _checked(layer, value) for layer, value in ranges.items()}


def check_coverage(calibrated: Mapping[str, float], elsewhere: Mapping[str, float], largest_excess: float) -> None:
    """Raise `QuantizationError` where other data leaves a layer's calibrated range by more than `largest_excess`.

    What lies outside the range is clipped, so calibration data must look like what will be served.
    """
    for layer, largest in calibrated.items():
        excess = elsewhere[layer] / largest
        if excess > largest_excess:
            raise QuantizationError(
                f"held-out data reaches {excess:.2f} times the calibrated range, allowed is {largest_excess}",
                where=layer,
                fix="calibrate with data that looks like it, or raise calibration.largest_range_excess",
            )


def _showing(model: onnx.ModelProto, names: Iterable[str]) -> onnxruntime.InferenceSession:
    """A session that gives these values, and computes nothing that they do not need."""
    model.graph.ClearField("output")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _checked(layer: str, largest: float | None) -> float:
    if largest is None:
        raise QuantizationError("it saw no calibration data", where=layer, fix="calibrate with one prompt at least")
    if not np.isfinite(largest):
        raise QuantizationError("its input is NaN or infinite on the calibration data", where=layer, fix=_FIX)
    if largest == 0:
        raise QuantizationError("its input is zero on all calibration data, so it has no scale", where=layer, fix=_FIX)
    return largest

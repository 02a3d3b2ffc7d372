"""Static INT8 as explicit Q/DQ nodes: one file for onnxruntime on a CPU and TensorRT on a GPU."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from common.errors import QuantizationError
from model.quantization.export_onnx import OPSET
from model.quantization.ranges import Ranges, input_ranges
from model.quantization.storage import shrink_storage

_LAYERS = ("blocks.", "plan.spread.2")
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


class _Reader(CalibrationDataReader):
    def __init__(self, feeds: Sequence[Mapping[str, np.ndarray]]):
        self._feeds: Iterator[Mapping[str, np.ndarray]] = iter(feeds)

    def get_next(self) -> dict[str, Any]:
        # The library asks until it is told None, and annotates that as a dictionary.
        return next(self._feeds, None)  # pyright: ignore[reportReturnType]


def quantizable_layers(model: onnx.ModelProto, *, heads: bool) -> list[str]:
    """Names of the products with a constant matrix: the blocks' layers, the large one that spreads a plan over the cells, and the
    output heads if asked for; and of an image decoder's convolutions over more than one cell.

    What draws the plan stays in floating point: one code that is drawn otherwise is another image. So do convolutions of
    single cells, which cost more accuracy than time.
    """
    constants = {initializer.name: initializer.dims for initializer in model.graph.initializer}
    weighted = [node for node in model.graph.node if len(node.input) > 1 and node.input[1] in constants]
    products = [node.name for node in weighted if node.op_type == "MatMul"]
    return [
        *(name for name in products if name.startswith(_LAYERS) or (heads and name.endswith("_head"))),
        *(node.name for node in weighted if node.op_type == "Conv" and max(constants[node.input[1]][2:]) > 1),
    ]


def quantize_graph(
    source: Path,
    target: Path,
    feeds: Sequence[Mapping[str, np.ndarray]],
    layers: Sequence[str],
    percentile: float | None = None,
) -> Ranges:
    """Quantize the named layers of the graph `source`: symmetric S8 activations per tensor, weights per channel.

    The activations' ranges are the extremes over `feeds`, or hold the given `percentile` of their absolute values and clip
    the rest. Products of two activations stay in floating point. Returns the extremes.
    Raises `QuantizationError` where a range is zero or not finite or rests on no data, naming the layer.
    """
    # Looked at before: what onnxruntime makes of a zero range is the scale 1, which could be a good one.
    ranges = input_ranges(source, feeds, layers)
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it recommends a pre-processing that the exporter has already done
    try:
        quantize_static(
            source,
            target,
            _Reader(feeds),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul", "Conv"],
            nodes_to_quantize=list(layers),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax if percentile is None else CalibrationMethod.Percentile,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "QuantizeBias": False,  # TensorRT takes no int32
                **({} if percentile is None else {"CalibPercentile": percentile, "CalibTensorRangeSymmetric": True}),
            },
        )
    finally:
        logger.setLevel(level)
    model = onnx.load(target)
    _standard_domain_only(model)
    shrink_storage(model)
    check_explicit_quantization(model, layers)
    onnx.save(model, target)
    return ranges


def _standard_domain_only(model: onnx.ModelProto) -> None:
    """Drop imports of domains that no node uses: TensorRT's parser looks for a plugin there."""
    used = {node.domain for node in model.graph.node}
    kept = [entry for entry in model.opset_import if entry.domain in used | {""}]
    model.ClearField("opset_import")
    model.opset_import.extend(kept)


def check_explicit_quantization(model: onnx.ModelProto, layers: Sequence[str]) -> None:
    """TensorRT's rules for explicit quantization; raises `QuantizationError` naming what breaks one.

    Every node is of the standard domain and of the opset that we export or a later one, every zero point is 0, weights are
    int8 and symmetric per output channel (axis 1 of a matrix, axis 0 of a convolution's kernel), scales are finite and
    positive, both inputs of a quantized layer come through Q/DQ.
    """
    graph = model.graph
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OPSET:
        # Q/DQ have an axis, and so a scale for each channel, since 13, and half-precision scales since 19.
        raise QuantizationError(
            f"its opset is {opset}, below {OPSET}", where=graph.name, fix="export the graph again with this version"
        )
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    for node in graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise QuantizationError(f"the node is of the domain {node.domain}", where=node.name)
        if node.op_type in _QUANTIZING:
            _check_scale(node, tensors, graph)
    by_name = {node.name: node for node in graph.node}
    for layer in layers:
        node = by_name[layer]
        activation, weight = (producers.get(name) for name in node.input[:2])
        if activation is None or activation.op_type != "DequantizeLinear":
            raise QuantizationError("its activations are not quantized", where=layer)
        if weight is None or weight.op_type != "DequantizeLinear" or tensors[weight.input[0]].dtype != np.int8:
            raise QuantizationError("its weights are not int8", where=layer)
        axis = next((attribute.i for attribute in weight.attribute if attribute.name == "axis"), 1)
        outputs = 0 if node.op_type == "Conv" else 1
        if axis != outputs or tensors[weight.input[1]].shape != (tensors[weight.input[0]].shape[outputs],):
            raise QuantizationError("its weights are not scaled per output channel", where=layer)


def _layer_of(node: onnx.NodeProto, graph: onnx.GraphProto) -> str:
    """The name of what reads, through other Q/DQ nodes, what this Q/DQ node gives; one of them, where there are several."""
    while node.op_type in _QUANTIZING:
        reader = next((other for other in graph.node if node.output[0] in other.input), None)
        if reader is None:
            break
        node = reader
    return node.name


def _check_scale(node: onnx.NodeProto, tensors: Mapping[str, np.ndarray], graph: onnx.GraphProto) -> None:
    scale, zero_point = tensors[node.input[1]], tensors[node.input[2]]
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise QuantizationError(
            "a scale is zero or not finite", where=_layer_of(node, graph), fix="check the calibration data"
        )
    if zero_point.dtype != np.int8 or zero_point.any():
        raise QuantizationError("a zero point is not an int8 zero", where=_layer_of(node, graph))

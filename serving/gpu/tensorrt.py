"""What TensorRT asks of a graph, as far as the file tells: nothing here builds an engine."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from common.errors import RepositoryError
from serving.gpu.onnx_file import OnnxFile

OPSETS = range(9, 25)
"""Of the ONNX parser of TensorRT 10.15; 11 takes 25, too."""
_QUANTIZING = ("QuantizeLinear", "DequantizeLinear")


def check_for_tensorrt(file: OnnxFile, path: Path) -> None:
    """Raises `RepositoryError` for an opset that TensorRT's parser does not take, an operator of another domain, which it
    would look for among its plugins, and quantization that is not its own: scales that are positive and finite, and zero
    points that are 0 of int8."""
    if file.opset not in OPSETS:
        raise RepositoryError(
            f"its opset is {file.opset}; TensorRT takes {OPSETS.start} to {OPSETS.stop - 1}", where=str(path)
        )
    tensors = {tensor.name: tensor for tensor in file.model.graph.initializer}
    for node in file.model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise RepositoryError(f"the node '{node.name}' is of the domain {node.domain}", where=str(path))
        if node.op_type in _QUANTIZING:
            _check_quantization(node, tensors, path)


def _check_quantization(node: onnx.NodeProto, tensors: Mapping[str, TensorProto], path: Path) -> None:
    scale, *zero_point = (_content(tensors, name, node, path) for name in node.input[1:3])
    if not np.isfinite(scale).all() or (scale <= 0).any():
        raise RepositoryError(f"a scale of the node '{node.name}' is zero or not finite", where=str(path))
    if any(one.dtype != np.int8 or one.any() for one in zero_point):
        raise RepositoryError(f"a zero point of the node '{node.name}' is not an int8 zero", where=str(path))


def _content(tensors: Mapping[str, TensorProto], name: str, node: onnx.NodeProto, path: Path) -> np.ndarray:
    if name not in tensors:
        raise RepositoryError(f"the node '{node.name}' takes its scale from no constant", where=str(path))
    tensor = tensors[name]
    if uses_external_data(tensor):
        # Not by onnx itself: it takes weights that have two names, as the graphs' models share them, for an attack.
        info, loaded = ExternalDataInfo(tensor), TensorProto()
        loaded.CopyFrom(tensor)
        loaded.ClearField("external_data")
        loaded.data_location = TensorProto.DEFAULT
        with (path.parent / info.location).open("rb") as weights:
            weights.seek(info.offset or 0)
            loaded.raw_data = weights.read(info.length or -1)
        tensor = loaded
    return numpy_helper.to_array(tensor)

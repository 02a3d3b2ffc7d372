"""One `weights.bin` for all graphs of an engine, in which equal tensors are stored once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnx.external_data_helper import set_external_data

from common.files import atomic_path

WEIGHTS_FILE = "weights.bin"
_ALIGNMENT = 64
_SMALLEST_BYTES = 128
"""Smaller tensors stay in the graph: shapes and constants, which onnxruntime reads while it optimizes."""
_CONTENTS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of a tensor, in one of which its content is; onnxruntime's quantizer takes others than the exporter."""


def pool_weights(folder: Path, graphs: Sequence[str]) -> None:
    """Move the large initializers of `<graph>.onnx` in `folder` to `weights.bin` beside them (ONNX external data)."""
    models = {graph: onnx.load(folder / f"{graph}.onnx") for graph in graphs}
    for model in models.values():
        # Whoever loads a graph infers the shapes again; only for convolutions onnxruntime does better with what is told.
        if not any(node.op_type == "Conv" for node in model.graph.node):
            model.graph.ClearField("value_info")
    offsets: dict[str, int] = {}
    with atomic_path(folder / WEIGHTS_FILE) as temporary, temporary.open("wb") as pool:
        for model in models.values():
            for tensor in model.graph.initializer:
                content = tensor_bytes(tensor)
                if len(content) < _SMALLEST_BYTES:
                    continue
                digest = hashlib.sha256(content).hexdigest()
                if digest not in offsets:
                    pool.write(b"\0" * (-pool.tell() % _ALIGNMENT))
                    offsets[digest] = pool.tell()
                    pool.write(content)
                tensor.raw_data = content  # set_external_data wants it there
                set_external_data(tensor, WEIGHTS_FILE, offset=offsets[digest], length=len(content))
                for field in _CONTENTS:
                    tensor.ClearField(field)
    for graph, model in models.items():
        with atomic_path(folder / f"{graph}.onnx") as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))


def tensor_bytes(tensor: onnx.TensorProto) -> bytes:
    """A tensor's content, little-endian."""
    return tensor.raw_data if tensor.HasField("raw_data") else onnx.numpy_helper.to_array(tensor).tobytes()

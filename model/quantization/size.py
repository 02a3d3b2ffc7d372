"""How many bytes the transformer blocks of an engine take."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx

from model.quantization.weights_pool import tensor_bytes

_BLOCK = "blocks."
_QUANTIZATION = ("QuantizeLinear", "DequantizeLinear")


def block_bytes(folder: Path, graphs: Sequence[str]) -> int:
    """Bytes of the blocks' parameters as they are stored: weights, norms, and with INT8 scales and zero points.

    What several graphs share is counted once. Attention masks and other constants are no parameters.
    """
    seen: dict[str, int] = {}
    for graph in graphs:
        for tensor in _block_tensors(onnx.load(folder / f"{graph}.onnx").graph):
            content = tensor_bytes(tensor)
            seen[hashlib.sha256(content).hexdigest()] = len(content)
    return sum(seen.values())


def _block_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    reading = [node for node in graph.node if node.name.startswith(_BLOCK)]
    # Q/DQ nodes stand between a layer and what it reads; they belong to the layer.
    while reading:
        node = reading.pop()
        for name in node.input:
            if name in tensors and (name.startswith(_BLOCK) or node.op_type in _QUANTIZATION):
                yield tensors[name]
            elif name in producers and producers[name].op_type in _QUANTIZATION:
                reading.append(producers[name])

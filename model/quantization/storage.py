"""What is no product of an INT8 graph, in fewer bytes: at these sizes tables and the plan weigh more than the blocks.

Nothing of it costs time. A row of a table is read in INT8 and scaled after that; a matrix in 16 bits is made one in 32
when the graph is loaded, where onnxruntime and TensorRT compute what is constant.
"""

import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_TABLES = ("text_embedding.weight", "sketch_embedding.weight")
_HALVED = ("plan.prior.", "plan.spread.0.weight", "code_embedding.weight")
_SMALLEST_BYTES = 4096
_NORM = re.compile(r"blocks\.\d+\..*(norm\.weight|qk_norm|turned_norm)")


def shrink_storage(model: onnx.ModelProto) -> None:
    """Keep tables of embeddings in INT8, with one scale each; in fp16 the matrices that draw the plan, whose codes would be
    others in INT8, the small one that reads it, the blocks' norms, and the table of what may be unknown: what is read of
    that before anything is drawn is constant, and onnxruntime computes no DequantizeLinear in advance.
    """
    graph = model.graph
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT:
            continue
        if _NORM.fullmatch(tensor.name):
            _halve(graph, tensor)
        elif numpy_helper.to_array(tensor).nbytes < _SMALLEST_BYTES:
            continue
        elif tensor.name.endswith(_TABLES):
            _quantize_table(graph, tensor)
        elif tensor.name.startswith(_HALVED):
            _halve(graph, tensor)


def _quantize_table(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    readers = [node for node in graph.node if tensor.name in node.input]
    if any(node.op_type != "Gather" for node in readers):
        return
    table, name = numpy_helper.to_array(tensor), tensor.name
    scale = np.float32(np.abs(table).max() / 127)
    if scale == 0:
        return
    graph.initializer.remove(tensor)
    graph.initializer.extend(
        [
            numpy_helper.from_array(np.round(table / scale).astype(np.int8), f"{name}_quantized"),
            numpy_helper.from_array(np.asarray(scale), f"{name}_scale"),
            numpy_helper.from_array(np.zeros((), np.int8), f"{name}_zero_point"),
        ]
    )
    for node in readers:
        rows = node.output[0]
        node.input[0], node.output[0] = f"{name}_quantized", f"{rows}_quantized"
        scaled = helper.make_node(
            "DequantizeLinear",
            [f"{rows}_quantized", f"{name}_scale", f"{name}_zero_point"],
            [rows],
            name=f"{node.name}_DequantizeLinear",
        )
        graph.node.insert(list(graph.node).index(node) + 1, scaled)


def _halve(graph: onnx.GraphProto, tensor: onnx.TensorProto) -> None:
    name, half = tensor.name, f"{tensor.name}_half"
    content = numpy_helper.to_array(tensor).astype(np.float16)
    graph.initializer.remove(tensor)
    graph.initializer.append(numpy_helper.from_array(content, half))
    graph.node.insert(0, helper.make_node("Cast", [half], [name], name=f"{name}_Cast", to=TensorProto.FLOAT))

"""One graph from a prompt to pixels, put together from an engine's graphs of either precision.

Between four graphs an image's time is lost to what the decode loop does in numpy and, above all, to weights that the
next graph pushes out of the processor's caches. Where one pass draws the sketch and the details are the most likely
ones, nothing but noise comes from outside, so that all can run in one call. It computes what the loop computes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.compose import add_prefix

from model.decoding.loop import stage_name
from model.quantization.export_onnx import engine_graphs
from model.quantization.weights_pool import tensor_bytes

DRAW = "draw"
"""The name of the graph: `text_ids`, `plan_noise` where there is a plan, and `sketch_noise` to `pixels`."""


def fuse_graphs(folder: Path, grids: Sequence[tuple[int, int]], visual_vocabulary: int) -> None:
    """Write `folder/draw.onnx`, weights inside, beside the graphs that it is made of.

    `grids` are the rows and columns of each stage, the sketch's first. `sketch_noise` float32 [batch, coarse_tokens,
    visual_vocabulary] is Gumbel noise times the temperature.
    """
    stages = len(grids) - 1
    parts = engine_graphs(stages)
    models = {name: add_prefix(onnx.load(folder / f"{name}.onnx"), f"{name}/") for name in parts}
    has_plan = "prefill/plan_noise" in {value.name for value in models["prefill"].graph.input}
    names = wires(stages, has_plan)
    nodes = [
        *_sketch_glue(),
        *details_glue(stages),
        *(node for name in parts for node in connected(models[name].graph, names)),
    ]
    tensors = [tensor for model in models.values() for tensor in model.graph.initializer]
    tensors = stored_once([*tensors, *constants(grids, visual_vocabulary)], nodes)
    inputs = [
        helper.make_tensor_value_info("text_ids", TensorProto.INT64, _shape(models["prefill"], "text_ids")),
        *(
            [helper.make_tensor_value_info("plan_noise", TensorProto.FLOAT, _shape(models["prefill"], "plan_noise"))]
            if has_plan
            else []
        ),
        helper.make_tensor_value_info(
            "sketch_noise", TensorProto.FLOAT, ["batch", grids[0][0] * grids[0][1], visual_vocabulary]
        ),
    ]
    given = {value.name for value in inputs}
    nodes = computed_once(_in_order(_needed(nodes, "pixels"), given), "pixels")
    shapes = list(models["image_decoder"].graph.value_info)  # its convolutions are faster with them
    onnx.save(whole(nodes, tensors, inputs, shapes, list(models.values())), folder / f"{DRAW}.onnx")


def whole(
    nodes: list[NodeProto],
    tensors: list[TensorProto],
    inputs: Sequence[ValueInfoProto],
    shapes: list[ValueInfoProto],
    parts: Sequence[ModelProto],
) -> ModelProto:
    """The graph of these nodes in their order, from `inputs` to `pixels`; `parts` are what it was made of."""
    tensors = [*tensors, *_own_weights(nodes, tensors)]
    _shorten_names(nodes, tensors, shapes, {value.name for value in inputs} | {"pixels"})
    read = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        DRAW,
        inputs,
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", "height", "width", 3])],
        [tensor for tensor in tensors if tensor.name in read],
        value_info=shapes,
    )
    opsets = {opset.domain: opset.version for model in parts for opset in model.opset_import}
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, version) for domain, version in sorted(opsets.items())],
        ir_version=max(part.ir_version for part in parts),
    )
    model.functions.extend(function for part in parts for function in part.functions)
    return model


def wires(stages: int, has_plan: bool) -> dict[str, str]:
    """What each part's input, and the last part's output, is called in the whole.

    What is not known yet is the same for all images of a batch: computed once, when the graph is loaded. Without a plan
    nothing else would tell the sketch how many images there are.
    """
    names = {
        "prefill/text_ids": "text_ids",
        "prefill/plan_noise": "plan_noise",
        "coarse/coarse_ids": "unknown_sketch" if has_plan else "blank_sketch",
        "image_decoder/codes": "codes",
        "image_decoder/pixels": "pixels",
    }
    for stage in range(stages + 1):
        name = stage_name(stage)
        names |= {f"{name}/past": "prefill/past", f"{name}/plan_ids": "prefill/plan_ids"}
        if stage:
            names |= {f"{name}/coarse_ids": stage_cells(stage - 1), f"{name}/fine_ids": f"unknown_{name}"}
    return names


def stage_cells(stage: int) -> str:
    """A stage's tokens in raster order, [batch, cells]."""
    return f"{stage_name(stage)}_cells"


def connected(graph: GraphProto, names: Mapping[str, str]) -> Iterator[NodeProto]:
    """The nodes of a part, reading and writing the whole's values."""
    for node in graph.node:
        for values in (node.input, node.output):
            for position, value in enumerate(values):
                values[position] = names.get(value, value)
        yield node


def stored_once(tensors: list[TensorProto], nodes: list[NodeProto]) -> list[TensorProto]:
    """One of each content, which `nodes` then read."""
    kept: dict[tuple, TensorProto] = {}
    names = {}
    for tensor in tensors:
        content = (tensor.data_type, tuple(tensor.dims), tensor_bytes(tensor))
        names[tensor.name] = kept.setdefault(content, tensor).name
    for node in nodes:
        _rename_inputs(node, names)
    return list(kept.values())


def computed_once(nodes: list[NodeProto], output: str) -> list[NodeProto]:
    """Without those that compute what an earlier one does; `nodes` are in order.

    onnxruntime would do so, too, but leaves a product in fp32 whose quantized input it made one of two. A DequantizeLinear
    belongs to one product, as everywhere in Q/DQ graphs.
    """
    names: dict[str, str] = {}
    seen: dict[tuple, NodeProto] = {}
    kept = []
    for node in nodes:
        _rename_inputs(node, names)
        attributes = sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute)
        same = seen.setdefault((node.op_type, *node.input, *attributes), node)
        if same is node or output in node.output:
            kept.append(node)
        else:
            names |= dict(zip(node.output, same.output, strict=True))
    return list(_own_scales(kept))


def _own_scales(nodes: list[NodeProto]) -> Iterator[NodeProto]:
    """The nodes, with a DequantizeLinear of its own for each that reads one."""
    makers = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear"}
    read: set[str] = set()
    for number, node in enumerate(nodes):
        for position, value in enumerate(node.input):
            if value in makers and value in read:
                own = NodeProto()
                own.CopyFrom(makers[value])
                own.name = f"{own.name}/{number}.{position}"
                own.output[0] = node.input[position] = f"{value}/{number}.{position}"
                yield own
            read.add(value)
        yield node


def _own_weights(nodes: list[NodeProto], tensors: list[TensorProto]) -> list[TensorProto]:
    """Copies under other names of INT8 weights and their zero points, so that no two products read the same ones.

    Where a processor has no VNNI, onnxruntime rewrites the weights of each product, and cannot do so twice to one tensor
    (`session.x64quantprecision`). `pool_weights` stores equal ones once all the same.
    """
    stored, read, copies = {tensor.name: tensor for tensor in tensors}, set(), []
    for number, node in enumerate(nodes):
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            continue
        for position in (0, 2)[: len(node.input) - 1]:  # a zero point need not be there
            name = node.input[position]
            if name in read:
                own = TensorProto()
                own.CopyFrom(stored[name])
                own.name = node.input[position] = f"{name}/{number}"
                copies.append(own)
            read.add(name)
    return copies


def _rename_inputs(node: NodeProto, names: Mapping[str, str]) -> None:
    for position, value in enumerate(node.input):
        node.input[position] = names.get(value, value)


def _shorten_names(
    nodes: list[NodeProto], tensors: list[TensorProto], shapes: list[ValueInfoProto], kept: set[str]
) -> None:
    """Number the values: their names are a third of the file. Nodes keep theirs."""
    names = {name: name for name in (*kept, "")}
    for node in nodes:
        for values in (node.input, node.output):
            for position, value in enumerate(values):
                values[position] = names.setdefault(value, f"{len(names):x}")
    for named in (*tensors, *shapes):
        named.name = names.setdefault(named.name, f"{len(names):x}")


def _needed(nodes: list[NodeProto], output: str) -> list[NodeProto]:
    """Those that `output` depends on; onnxruntime runs all that it is given."""
    makers = {name: number for number, node in enumerate(nodes) for name in node.output}
    found, asked = set(), [output]
    while asked:
        number = makers.get(asked.pop())
        if number is not None and number not in found:
            found.add(number)
            asked += nodes[number].input
    return [node for number, node in enumerate(nodes) if number in found]


def _sketch_glue() -> list[NodeProto]:
    """A blank grid, and the draw."""
    return [
        helper.make_node("Shape", ["text_ids"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "one"], ["sketch_batch"], axis=0),
        helper.make_node("Expand", ["unknown_sketch", "sketch_batch"], ["blank_sketch"]),
        helper.make_node("Add", ["coarse/logits", "sketch_noise"], ["noisy_sketch"]),
        helper.make_node("ArgMax", ["noisy_sketch"], [stage_cells(0)], axis=-1, keepdims=0),
    ]


def details_glue(stages: int) -> list[NodeProto]:
    """What the decode loop does after the sketch: each stage's details put in their places."""
    nodes = []
    for stage in range(1, stages + 1):
        name = stage_name(stage)
        nodes += [
            helper.make_node("ArgMax", [f"{name}/logits"], [f"{name}_details"], axis=-1, keepdims=0),
            helper.make_node("Reshape", [f"{name}_details", f"{name}_blocks_shape"], [f"{name}_blocks"]),
            helper.make_node("Transpose", [f"{name}_blocks"], [f"{name}_lines"], perm=[0, 1, 3, 2, 4]),
            helper.make_node("Reshape", [f"{name}_lines", f"{name}_cells_shape"], [stage_cells(stage)]),
        ]
    return [*nodes, helper.make_node("Reshape", [stage_cells(stages), "grid_shape"], ["codes"])]


def constants(grids: Sequence[tuple[int, int]], visual_vocabulary: int) -> list[TensorProto]:
    """What the glue and the parts read that no prompt changes: int64, by the names that `wires` and the glue use."""
    (rows, columns), (height, width) = grids[0], grids[-1]
    values = {
        "one": np.array([1]),
        "unknown_sketch": np.full((1, rows * columns), visual_vocabulary),
        "grid_shape": np.array([0, height, width]),
    }
    for stage, (rows, columns) in enumerate(grids[:-1], start=1):
        name = stage_name(stage)
        values |= {
            f"unknown_{name}": np.full((1, rows * columns, 4), visual_vocabulary),
            f"{name}_blocks_shape": np.array([0, rows, columns, 2, 2]),
            f"{name}_cells_shape": np.array([0, 4 * rows * columns]),
        }
    return [numpy_helper.from_array(value.astype(np.int64), name) for name, value in values.items()]


def _in_order(nodes: list[NodeProto], given: set[str]) -> list[NodeProto]:
    """Every node after those that make what it reads, as ONNX asks for."""
    made = {output for node in nodes for output in node.output}
    ordered, known, waiting = [], given | {""}, list(nodes)
    while waiting:
        ready = [node for node in waiting if all(name in known or name not in made for name in node.input)]
        assert ready, "the graph has a cycle"
        ordered += ready
        known |= {output for node in ready for output in node.output}
        names = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in names]
    return ordered


def _shape(model: ModelProto, name: str) -> list[str | int]:
    """The axes of an input of `prefill`."""
    value = next(value for value in model.graph.input if value.name == f"prefill/{name}")
    return ["batch", *(axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim[1:])]

"""The next-token decoder as one graph from a prompt to pixels, so that nothing but noise comes from outside: what
`model.quantization.fuse` does for ours, done for the baseline.

Every cell has nodes of its own, each with the weights that all share: onnxruntime's `Loop` takes four times as long.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.compose import add_prefix

from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import stage_name
from model.decoding.samplers import gumbel_noise, streams
from model.quantization.fuse import (
    computed_once,
    connected,
    constants,
    details_glue,
    stage_cells,
    stored_once,
    whole,
    wires,
)
from serving.package.runtime.graphs import Graph

FILE = "draw_next.onnx"
_NEXT = "next"


def fuse_next_tokens(folder: Path, grids: Sequence[tuple[int, int]], visual_vocabulary: int) -> Path:
    """Write `folder/draw_next.onnx` beside the graphs that it is made of: `text_ids` and `cell_noise`, float32 [batch, cells,
    visual_vocabulary], Gumbel noise times the temperature, to `pixels`. Returns the file."""
    stages, cells = len(grids) - 1, grids[0][0] * grids[0][1]
    details = [stage_name(stage) for stage in range(1, stages + 1)]
    models = {
        name: add_prefix(onnx.load(folder / f"{name}.onnx"), f"{name}/")
        for name in ("prefill", _NEXT, *details, "image_decoder")
    }
    names = wires(stages, has_plan=False)
    nodes = [
        *connected(models["prefill"].graph, names),
        *_cells(models[_NEXT], cells),
        *_stages(models, details, names),
    ]
    tensors = [tensor for model in models.values() for tensor in model.graph.initializer]
    positions = [numpy_helper.from_array(np.array([cell]), _position(cell)) for cell in range(cells)]
    start = numpy_helper.from_array(np.full((1, 1), visual_vocabulary), "start")
    tensors = stored_once([*tensors, *constants(grids, visual_vocabulary), *positions, start], nodes)
    inputs = [
        helper.make_tensor_value_info("text_ids", TensorProto.INT64, ["batch", "tokens"]),
        helper.make_tensor_value_info("cell_noise", TensorProto.FLOAT, ["batch", cells, visual_vocabulary]),
    ]
    shapes = list(models["image_decoder"].graph.value_info)
    fused = whole(computed_once(nodes, "pixels"), tensors, inputs, shapes, list(models.values()))
    onnx.save(fused, folder / FILE)
    return folder / FILE


def draw_next(
    graph: Graph, text_ids: np.ndarray, seeds: list[int], options: NextTokenOptions, cells: int, vocabulary: int
) -> np.ndarray:
    """What `continue_tokens` and the details' most likely ones give with these seeds: int64 [batch, text_length] -> uint8
    [batch, height, width, 3]. Of the `options`, the temperature alone, above 0."""
    noise = np.float32(options.temperature) * gumbel_noise(streams(seeds), (cells, vocabulary))
    return np.asarray(graph.run(["pixels"], {"text_ids": text_ids, "cell_noise": noise})[0])


def _cells(step: ModelProto, cells: int) -> Iterator[NodeProto]:
    """The nodes of each cell in turn: what `NextCellSession` asks, and the draw."""
    noise = [f"cell_noise/{cell}" for cell in range(cells)]
    yield helper.make_node("Split", ["cell_noise"], noise, axis=1, num_outputs=cells)
    yield helper.make_node("Shape", ["text_ids"], ["batch"], start=0, end=1)
    yield helper.make_node("Concat", ["batch", "one"], ["one_each"], axis=0)
    yield helper.make_node("Expand", ["start", "one_each"], [_token(-1)])
    given = {tensor.name for tensor in step.graph.initializer}
    for cell in range(cells):
        past = "prefill/past" if cell == 0 else _own("present", cell - 1)
        fed = {f"{_NEXT}/past": past, f"{_NEXT}/previous_ids": _token(cell - 1), f"{_NEXT}/first": _position(cell)}
        for node in step.graph.node:
            yield _copied(node, cell, fed, given)
        logits, each = _own("logits", cell), f"each_logits/{cell}"
        yield helper.make_node("Unsqueeze", [logits, "one"], [each])
        yield helper.make_node("Add", [each, noise[cell]], [f"noisy/{cell}"])
        yield helper.make_node("ArgMax", [f"noisy/{cell}"], [_token(cell)], axis=-1, keepdims=0)
    yield helper.make_node("Concat", [_token(cell) for cell in range(cells)], [stage_cells(0)], axis=1)


def _copied(node: NodeProto, cell: int, fed: dict[str, str], given: set[str]) -> NodeProto:
    """A node of the graph `next` for one cell; weights stay those of all."""
    own = NodeProto()
    own.CopyFrom(node)
    own.name = f"{node.name}/{cell}"
    for values in (own.input, own.output):
        for position, value in enumerate(values):
            if value and value not in given:
                values[position] = fed.get(value, f"{value}@{cell}")
    return own


def _stages(models: dict[str, ModelProto], details: Sequence[str], names: dict[str, str]) -> Iterator[NodeProto]:
    """The details and the pixels, each after what it reads."""
    *glue, grid = details_glue(len(details))
    each = len(glue) // max(len(details), 1)
    for number, name in enumerate(details):
        yield from connected(models[name].graph, names)
        yield from glue[each * number : each * (number + 1)]
    yield grid
    yield from connected(models["image_decoder"].graph, names)


def _own(output: str, cell: int) -> str:
    return f"{_NEXT}/{output}@{cell}"


def _token(cell: int) -> str:
    return f"token/{cell}"


def _position(cell: int) -> str:
    return f"position/{cell}"

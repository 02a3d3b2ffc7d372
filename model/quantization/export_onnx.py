"""Exporting a generator and its image decoder as the ONNX graphs of `docs/architecture.md`."""

import ast
import gc
import hashlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from onnxscript.optimizer import optimize_ir
from torch import Tensor, nn

from model.decoding.loop import stage_name
from model.quantization.inference import (
    CoarseGraph,
    FineGraph,
    ImageDecoderGraph,
    NextGraph,
    PrefillGraph,
    SequenceGraph,
)
from model.quantization.lean import with_lean_layers
from model.tokenizers.visual import VisualTokenizer
from model.transformer.model import Generator
from model.transformer.plan import FINE_PER_CELL

OPSET = 21
_SCOPES = "pkg.torch.onnx.name_scopes"
_FOLDED = 1000
"""Elements up to which constants are computed while exporting; what is larger, onnxruntime computes when it loads the
graph, and the file stays small."""
_TRACED_BATCH = 2
"""Not 1: a traced size of 1 is taken for a constant."""


class _Graph(NamedTuple):
    """What the exporter is to be told of a graph."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    dynamic: tuple
    """Names of the axes that vary, by their number, for each input."""
    outputs: list[str]


def transformer_graphs(detail_stages: int) -> tuple[str, ...]:
    """Names of the graphs that hold the blocks: the prompt's, and one for each stage of an image."""
    return ("prefill", *(stage_name(stage) for stage in range(detail_stages + 1)))


def engine_graphs(detail_stages: int) -> tuple[str, ...]:
    """Names of all that an engine needs. `next` and `sequence` are for the autoregressive baselines of the benchmark."""
    return (*transformer_graphs(detail_stages), "image_decoder")


def export_graphs(
    generator: Generator,
    visual: VisualTokenizer,
    folder: Path,
    on_graph: Callable[[str], None] = lambda name: None,
    names: Sequence[str] | None = None,
    *,
    lean: bool = True,
) -> None:
    """Write the named graphs, all that an engine needs by default, weights inside, batch dynamic. `on_graph` is told the
    name of each before it starts.

    Without `lean` the model's layers are exported as they are, in more operators; what is computed is the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    described = _describe(with_lean_layers(generator) if lean else generator, visual)
    for name in names or engine_graphs(len(generator.config.grids) - 1):
        on_graph(name)
        graph = described[name]()
        model = _export(graph)
        _name_weights(model.graph, graph.module)
        _name_nodes(model.graph)
        _strip_traces(model)
        onnx.save(model, folder / f"{name}.onnx")


def _describe(generator: Generator, visual: VisualTokenizer) -> dict[str, Callable[[], _Graph]]:
    """Every graph that there is, by name."""
    config = generator.config
    text_ids = torch.zeros(_TRACED_BATCH, config.text_length, dtype=torch.long)
    coarse_ids = torch.zeros(_TRACED_BATCH, config.coarse_tokens, dtype=torch.long)
    past = torch.zeros(
        config.num_hidden_layers, 2, _TRACED_BATCH, config.num_key_value_heads, config.text_length, config.head_dim
    )
    previous, first = coarse_ids[:, :1], torch.zeros(1, dtype=torch.long)
    # Rows and columns differ, or the exporter would take them for one axis.
    codes = torch.zeros(_TRACED_BATCH, config.coarse_grid[0], config.coarse_grid[1] + 2, dtype=torch.long)
    rows, of_past, grid = {0: "batch"}, {2: "batch"}, {0: "batch", 1: "rows", 2: "columns"}
    plan_noise, plan_ids, drawn = (), (), []
    if generator.plan is not None:
        plan_noise = (torch.zeros(_TRACED_BATCH, *generator.plan.prior.noise_shape),)
        plan_ids = (torch.zeros(_TRACED_BATCH, config.plan_tokens, dtype=torch.long),)
        drawn = ["plan_ids", "plan_logits"]
    of_plan = tuple(rows for _ in plan_ids)

    def fine(stage: int) -> _Graph:
        height, width = config.grids[stage - 1]
        cell_ids = torch.zeros(_TRACED_BATCH, height * width, dtype=torch.long)
        fine_ids = torch.zeros(_TRACED_BATCH, height * width, FINE_PER_CELL, dtype=torch.long)
        axes = (of_past, rows, rows, *of_plan)
        return _Graph(FineGraph(generator, stage), (past, cell_ids, fine_ids, *plan_ids), axes, ["logits"])

    return {
        "prefill": lambda: _Graph(PrefillGraph(generator), (text_ids, *plan_noise), (rows, *of_plan), ["past", *drawn]),
        "coarse": lambda: _Graph(
            CoarseGraph(generator), (past, coarse_ids, *plan_ids), (of_past, rows, *of_plan), ["logits"]
        ),
        **{stage_name(stage): partial(fine, stage) for stage in range(1, len(config.grids))},
        "image_decoder": lambda: _Graph(ImageDecoderGraph(visual), (codes,), (grid,), ["pixels"]),
        "next": lambda: _Graph(
            NextGraph(generator),
            (past, previous, first),
            ({2: "batch", 4: "known"}, rows, {}),
            ["logits", "present"],
        ),
        "sequence": lambda: _Graph(
            SequenceGraph(generator), (text_ids, coarse_ids[:, :3]), (rows, {0: "batch", 1: "known"}), ["logits"]
        ),
    }


def _export(graph: _Graph) -> onnx.ModelProto:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of every optional package that is absent
    try:
        with warnings.catch_warnings(), torch.no_grad(), _nothing_collected():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph.module.eval(),
                graph.inputs,
                dynamo=True,
                opset_version=OPSET,
                output_names=graph.outputs,
                dynamic_shapes=graph.dynamic,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            optimize_ir(program.model, input_size_limit=_FOLDED)
    finally:
        logger.setLevel(level)
    return program.model_proto


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """The tracer makes millions of objects that stay: looking among them for garbage takes a fifth of an export's time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _name_weights(graph: onnx.GraphProto, module: nn.Module) -> None:
    """Call every initializer by the parameter that it holds.

    The exporter transposes matrices and then numbers them; finding them by content survives that.
    """
    names = {}
    for name, tensor in module.state_dict().items():
        name = name.removeprefix("generator.")
        names[_content(tensor.numpy())] = name
        if tensor.dim() == 2:
            names.setdefault(_content(tensor.numpy().T), name)
    renamed: dict[str, str] = {}
    for initializer in graph.initializer:
        name = names.get(_content(numpy_helper.to_array(initializer)))
        if name and name not in renamed.values():
            renamed[initializer.name] = name
            initializer.name = name
    for node in graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = renamed.get(name, name)


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Put each node's module before its name: `blocks.0.mlp/node_mul_3`; a product with a weight is its layer."""
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1].endswith(".weight"):
            node.name = node.input[1].removesuffix(".weight")
            continue
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get(_SCOPES, "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "").removeprefix("generator.")
        node.name = f"{module}/{node.name}"


def _content(array: np.ndarray) -> str:
    described = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(described + np.ascontiguousarray(array).tobytes()).hexdigest()


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes (source lines, paths): equal weights give equal bytes anywhere."""
    for item in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        model.graph,
        model,
    ):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for initializer in model.graph.initializer:
        initializer.ClearField("metadata_props")
        initializer.ClearField("doc_string")

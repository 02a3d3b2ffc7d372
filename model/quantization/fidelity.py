"""How far the INT8 graphs are from the full-precision ones, layer by layer and at the output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime


@dataclass(frozen=True)
class GraphFidelity:
    """Relative L2 errors |int8 - fp32| / |fp32| of one graph."""

    output: float
    """Of the output that is furthest off."""
    layers: dict[str, float]
    """Of each layer's output, with the errors of all layers before it."""
    agreement: float | None
    """Share of the positions whose most likely token, or token of the plan, is the same; None without logits."""


def measure_fidelity(
    full: Path, quantized: Path, feeds: Sequence[Mapping[str, np.ndarray]], layers: Sequence[str]
) -> GraphFidelity:
    """Run both graphs on the same inputs and compare them."""
    reference, candidate = _with_layer_outputs(full, layers), _with_layer_outputs(quantized, layers)
    names = [output.name for output in reference.get_outputs()]
    own = len(names) - len(layers)
    logits = next((index for index, name in enumerate(names[:own]) if name.endswith("logits")), None)
    error, total = np.zeros(len(names)), np.zeros(len(names))
    agreeing: list[np.ndarray] = []
    for feed in feeds:
        expected, found = _run(reference, feed), _run(candidate, feed)
        error += [np.square(b.astype(np.float64) - a).sum() for a, b in zip(expected, found, strict=True)]
        total += [np.square(a, dtype=np.float64).sum() for a in expected]
        if logits is not None:
            agreeing.append((expected[logits].argmax(-1) == found[logits].argmax(-1)).ravel())
    relative = np.sqrt(error / total)
    return GraphFidelity(
        output=float(relative[:own].max()),
        layers={layer: float(value) for layer, value in zip(layers, relative[own:], strict=True)},
        agreement=float(np.concatenate(agreeing).mean()) if agreeing else None,
    )


def _run(session: onnxruntime.InferenceSession, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return [np.asarray(output) for output in session.run(None, dict(feed))]


def _with_layer_outputs(path: Path, layers: Sequence[str]) -> onnxruntime.InferenceSession:
    """A session whose first outputs are the graph's own, and the others the named layers' in their order."""
    model = onnx.load(path)
    products = {node.name: node.output[0] for node in model.graph.node}
    for layer in layers:
        model.graph.output.append(onnx.ValueInfoProto(name=products[layer]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.x64quantprecision", "1")  # as the package's runtime has it
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

"""What a session asks of a graph, wherever that one is computed: in this process, or as a Triton model of its own."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

GRAPHS_NAME = "graphs.json"
"""Beside a package's signed files where its graphs are Triton models: `accelerator`, and `models` by the graphs' names."""


class Graph(Protocol):
    """One graph, ready to compute; an `onnxruntime.InferenceSession` is one."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray], /) -> Sequence[Any]:
        """The arrays of the named outputs, in their order."""
        ...


Load = Callable[[Path], Graph]
"""From a graph's file in a package to the graph."""


def graph_models(package: Path) -> dict[str, str] | None:
    """Names of the Triton models that compute the graphs of a package, by graph; None where the package does so itself."""
    file = package / GRAPHS_NAME
    return json.loads(file.read_text())["models"] if file.is_file() else None

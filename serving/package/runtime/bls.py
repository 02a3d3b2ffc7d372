"""Graphs that are Triton models of their own, asked from inside Triton (business logic scripting).

Triton answers such questions while requests are executed, not while a model is initialized or ends.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  (Triton provides it)

from .graphs import GRAPHS_NAME, Load


class GraphModel:
    """A graph, by the name of its Triton model; for one caller at a time and any thread."""

    def __init__(self, model: str):
        self._model = model

    def run(self, outputs: Sequence[str], feeds: Mapping[str, np.ndarray], /) -> list[np.ndarray]:
        """The named outputs, on the CPU. Raises `RuntimeError` with what Triton says where the model cannot answer."""
        request = pb_utils.InferenceRequest(
            model_name=self._model,
            requested_output_names=list(outputs),
            inputs=[pb_utils.Tensor(name, np.ascontiguousarray(values)) for name, values in feeds.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(f"the graph's model '{self._model}' did not answer: {response.error().message()}")
        return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs]


def asking(models: Mapping[str, str]) -> Load:
    """Graphs by their models' names; raises `ValueError` for a graph that has none."""

    def load(file: Path) -> GraphModel:
        if file.stem not in models:
            raise ValueError(f"{GRAPHS_NAME} names no model for the graph '{file.stem}'")
        return GraphModel(models[file.stem])

    return load

"""Asks a graph's model for its smallest and its largest answer before anybody else does.

A model of TensorRT compiles its engine at its first request, and again for one larger than all before. That is to be done,
and to have succeeded, while the old package still serves.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from common.errors import ServerError
from common.files import read_json
from serving.control import ModelControl
from serving.gpu.onnx_file import OnnxFile, Value

Axes = Mapping[str, int]
"""Lengths of the axes that vary, by their names in the graphs."""
_ROWS_OF_GUIDANCE = 2
"""An image is drawn with its prompt and without one in the same batch."""


def probed_axes(package: Path, file: OnnxFile) -> Iterator[Axes]:
    """The smallest and the largest lengths that the package at `package` asks of a graph with."""
    config: dict[str, Any] = read_json(package / "1" / "generator.json")
    largest = config["runtime"]["largest_group"] * (1 if file.takes_batches else _ROWS_OF_GUIDANCE)
    for batch, (rows, columns) in ((1, config["coarse_grid"]), (largest, config["fine_grid"])):
        yield {
            "batch": batch,
            "text_length": config["text_length"],
            "coarse_tokens": config["coarse_grid"][0] * config["coarse_grid"][1],
            "rows": rows,
            "columns": columns,
        }


def probe(control: ModelControl, model: str, file: OnnxFile, axes: Axes) -> None:
    """Ask `model` for all outputs of nothing but zeros. Raises `ServerError` where it does not answer."""
    client = InferenceServerClient(control.endpoint)
    try:
        client.infer(
            model,
            [_zeros(value, axes) for value in file.inputs],
            outputs=[InferRequestedOutput(value.name) for value in file.outputs],
            client_timeout=control.timeout_s,
        )
    except InferenceServerException as error:
        raise ServerError(f"the model '{model}' does not answer: {error}", where=control.endpoint) from error
    finally:
        client.close()


def _zeros(value: Value, axes: Axes) -> InferInput:
    kind = value.data_type.removeprefix("TYPE_")
    shape = [axis if isinstance(axis, int) else axes.get(axis, 1) for axis in value.axes]
    given = InferInput(value.name, shape, kind)
    given.set_data_from_numpy(np.zeros(shape, triton_to_np_dtype(kind)))
    return given

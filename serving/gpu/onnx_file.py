"""What an ONNX file says of itself, without its weights."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from common.errors import RepositoryError

_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.INT8: "TYPE_INT8",
    onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32",
    onnx.TensorProto.INT64: "TYPE_INT64",
    onnx.TensorProto.BOOL: "TYPE_BOOL",
}
"""Triton's names."""


@dataclass(frozen=True)
class Value:
    """An input or an output of a graph."""

    name: str
    data_type: str
    """Triton's name of it: `TYPE_FP32`."""
    axes: tuple[int | str, ...]
    """Lengths, or the names of those that vary."""

    @property
    def dims(self) -> list[int]:
        """As Triton takes them: -1 for a length that varies."""
        return [axis if isinstance(axis, int) else -1 for axis in self.axes]


@dataclass(frozen=True)
class OnnxFile:
    """A graph's inputs and outputs, its opset and what it reads of other files."""

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    opset: int
    """Of the standard operators."""
    external_bytes: Mapping[str, int]
    """How long each file beside it must at least be."""
    model: onnx.ModelProto
    """Without external weights."""

    @property
    def takes_batches(self) -> bool:
        """Whether the first axis of every input and output is the batch, as Triton's own batching asks for."""
        values = (*self.inputs, *self.outputs)
        first = {value.axes[0] if value.axes else 0 for value in values}
        return len(first) == 1 and isinstance(first.pop(), str)


def read_onnx(file: Path) -> OnnxFile:
    """Raises `RepositoryError` for a file that is missing, is no ONNX model, or has a value of a type Triton has not."""
    if not file.is_file():
        raise RepositoryError("this file is missing", where=str(file))
    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf's own, and whatever else a damaged file causes
        raise RepositoryError(f"not an ONNX model ({type(error).__name__})", where=str(file)) from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if not model.graph.output or not opset:
        raise RepositoryError("not an ONNX model: it has no outputs or no opset", where=str(file))
    return OnnxFile(
        inputs=_values(model.graph.input, file),
        outputs=_values(model.graph.output, file),
        opset=opset,
        external_bytes=_external_bytes(model),
        model=model,
    )


def _values(declared: Sequence[onnx.ValueInfoProto], file: Path) -> tuple[Value, ...]:
    return tuple(_value(one, file) for one in declared)


def _value(declared: onnx.ValueInfoProto, file: Path) -> Value:
    tensor = declared.type.tensor_type
    if tensor.elem_type not in _TYPES:
        raise RepositoryError(f"'{declared.name}' is of a type that no graph of ours has", where=str(file))
    axes = tuple(axis.dim_value if axis.HasField("dim_value") else axis.dim_param or "?" for axis in tensor.shape.dim)
    return Value(declared.name, _TYPES[int(tensor.elem_type)], axes)


def _external_bytes(model: onnx.ModelProto) -> dict[str, int]:
    needed: dict[str, int] = {}
    for tensor in _external_tensors(model):
        info = ExternalDataInfo(tensor)
        end = (info.offset or 0) + (info.length or 0)
        needed[info.location] = max(needed.get(info.location, 0), end)
    return needed


def _external_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from (tensor for tensor in model.graph.initializer if uses_external_data(tensor))

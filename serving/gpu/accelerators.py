"""What computes the graphs of a package on a Triton with a GPU."""

from typing import Literal, get_args

from common.errors import UsageError

Accelerator = Literal["onnxruntime", "tensorrt"]
"""Triton's ONNX Runtime backend on CUDA, or with TensorRT for what that takes of a graph."""
ACCELERATORS: tuple[Accelerator, ...] = get_args(Accelerator)
LOAD_TIMEOUT_S: dict[Accelerator | None, float] = {None: 120.0, "onnxruntime": 300.0, "tensorrt": 1800.0}
"""How long a model may take to load and to answer first: TensorRT compiles it then."""


def parse_accelerator(name: str) -> Accelerator | None:
    """`none` is None: the package computes its graphs itself. Raises `UsageError` for a name that is not known."""
    if name == "none":
        return None
    for known in ACCELERATORS:
        if name == known:
            return known
    raise UsageError(f"there is no accelerator '{name}'", fix=f"choose none, {' or '.join(ACCELERATORS)}")

"""`config.pbtxt` of a graph's Triton model: its inputs and outputs as the ONNX file has them, and what computes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from common.errors import RepositoryError
from serving.gpu.accelerators import Accelerator
from serving.gpu.onnx_file import OnnxFile, Value

pb: Any = model_config_pb2
ModelConfig = Any
"""Triton's protobuf, a class that is made when it is imported: nothing can be told of its fields beforehand."""
CONFIG_NAME, MODEL_FILE, BACKEND, PLATFORM = "config.pbtxt", "model.onnx", "onnxruntime", "onnxruntime_onnx"
_TENSORRT = "tensorrt"


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """How the graphs run on the server's GPUs."""

    accelerator: Accelerator
    instances: int = 1
    """Copies of each graph on each GPU. One computes while the package's Python copies do the rest."""
    engine_cache: str | None = None
    """A folder on the server's machine for the engines that TensorRT compiles; without it they are compiled at each load.
    Nobody else may write to it: what lies there is run."""


def graph_config(file: OnnxFile, name: str, *, largest_batch: int, precision: str, options: GpuOptions) -> ModelConfig:
    """The model `name` of a graph. Where the first axis of all is the batch, requests of several callers are computed
    together, `largest_batch` rows at most; Triton cannot do that where another one is (`past`).

    `precision` is the package's: `int8` graphs hold their own scales (Q/DQ), which TensorRT takes in that mode.
    """
    config = pb.ModelConfig(
        name=name,
        backend=BACKEND,
        platform=PLATFORM,
        default_model_filename=MODEL_FILE,
        max_batch_size=largest_batch if file.takes_batches else 0,
        input=[pb.ModelInput(name=one.name, data_type=data_type(one), dims=dims(one, file)) for one in file.inputs],
        output=[pb.ModelOutput(name=one.name, data_type=data_type(one), dims=dims(one, file)) for one in file.outputs],
        instance_group=[pb.ModelInstanceGroup(kind=pb.ModelInstanceGroup.KIND_GPU, count=options.instances)],
    )
    if file.takes_batches:
        config.dynamic_batching.SetInParent()
    if options.accelerator == _TENSORRT:
        accelerator = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=_TENSORRT)
        accelerator.parameters["precision_mode"] = "INT8" if precision == "int8" else "FP32"
        if options.engine_cache is not None:
            accelerator.parameters["trt_engine_cache_enable"] = "1"
            accelerator.parameters["trt_engine_cache_path"] = options.engine_cache
    return config


def data_type(value: Value) -> int:
    return pb.DataType.Value(value.data_type)


def dims(value: Value, file: OnnxFile) -> list[int]:
    """As the configuration has them: without the batch, where Triton knows of it."""
    return value.dims[1:] if file.takes_batches else value.dims


def accelerator_of(config: ModelConfig) -> Accelerator:
    names = {one.name for one in config.optimization.execution_accelerators.gpu_execution_accelerator}
    return "tensorrt" if _TENSORRT in names else "onnxruntime"


def write_config(config: ModelConfig, model: Path) -> None:
    (model / CONFIG_NAME).write_text(text_format.MessageToString(config))


def read_config(model: Path) -> ModelConfig:
    """Raises `RepositoryError` where it is missing or no configuration of Triton's."""
    file = model / CONFIG_NAME
    if not file.is_file():
        raise RepositoryError("this file is missing", where=str(file))
    try:
        return text_format.Parse(file.read_text(), pb.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise RepositoryError(f"not a model configuration: {error}", where=str(file)) from error

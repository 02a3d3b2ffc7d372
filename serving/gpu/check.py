"""Whether a model repository is what a Triton server needs, as far as its files tell: no server is asked."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from common.errors import RepositoryError
from common.files import sha256_file
from serving.gpu.accelerators import Accelerator
from serving.gpu.config import BACKEND, CONFIG_NAME, MODEL_FILE, accelerator_of, data_type, dims, pb, read_config
from serving.gpu.names import ENGINE, generation_of, read_graphs
from serving.gpu.onnx_file import OnnxFile, Value, read_onnx
from serving.gpu.tensorrt import check_for_tensorrt
from serving.package.manifest import Manifest, read_manifest
from serving.package.runtime.graphs import GRAPHS_NAME


def check_repository(models: Path, name: str, *, package: Path | None = None) -> None:
    """Check the Python model `name` of the repository `models` and the models that compute its graphs.

    `package` is where the Python model's folder is while it is not under its name yet. Raises `RepositoryError`, which
    names the file and what is wrong with it: a configuration that does not parse or does not agree with its ONNX file, a
    graph without a model or of another package, weights that are missing, too short or altered, and what TensorRT would
    not take where it is asked for.
    """
    package = package or models / name
    manifest = read_manifest(package)
    if read_config(package).backend != "python":
        raise RepositoryError("a package is a model of the Python backend", where=str(package / CONFIG_NAME))
    found = read_graphs(package)
    if found is None:
        raise RepositoryError("it computes its graphs itself: this file is missing", where=str(package / GRAPHS_NAME))
    accelerator, by_graph = found
    check_names(package, name, manifest, accelerator, by_graph)
    known: dict[tuple[int, int], str] = {}
    for graph, model in by_graph.items():
        folder = models / model
        if not folder.is_dir():
            raise RepositoryError(f"there is no model for the graph '{graph}'", where=str(folder))
        file = _check_files(folder, manifest, graph, known)
        _check_config(folder, file, accelerator)
        if accelerator == "tensorrt":
            check_for_tensorrt(file, folder / "1" / MODEL_FILE)


def check_names(
    package: Path, name: str, manifest: Manifest, accelerator: Accelerator, by_graph: Mapping[str, str]
) -> None:
    """Every graph of the package has a model, and it is of this very package. Raises `RepositoryError` where not."""
    where = str(package / GRAPHS_NAME)
    graphs = {Path(file).stem for file in manifest.files if file.startswith(f"{ENGINE}/") and file.endswith(".onnx")}
    if missing := sorted(graphs - by_graph.keys()):
        raise RepositoryError(f"no model is named for the graph '{missing[0]}'", where=where)
    if foreign := sorted(by_graph.keys() - graphs):
        raise RepositoryError(f"the package has no graph '{foreign[0]}'", where=where)
    for graph, model in by_graph.items():
        expected = f"{generation_of(name, manifest.digest, accelerator)}-{graph}"
        if model != expected:
            raise RepositoryError(f"the graph '{graph}' is that of the model '{model}', not '{expected}'", where=where)


def _check_files(folder: Path, manifest: Manifest, graph: str, known: dict[tuple[int, int], str]) -> OnnxFile:
    """The ONNX file and the weights that it reads are those of the package; each is read once, whatever its names."""
    onnx = folder / "1" / MODEL_FILE
    file = read_onnx(onnx)
    for name, needed in file.external_bytes.items():
        weights = onnx.parent / name
        if not weights.is_file():
            raise RepositoryError("the weights of the graph are missing", where=str(weights))
        if weights.stat().st_size < needed:
            raise RepositoryError(
                f"the graph reads {needed} bytes of it, and it has {weights.stat().st_size}", where=str(weights)
            )
    signed = {onnx: f"{graph}.onnx"} | {onnx.parent / name: name for name in file.external_bytes}
    for path, name in signed.items():
        if _sha256(path, known) != manifest.files.get(f"{ENGINE}/{name}"):
            raise RepositoryError(f"it is not the package's '{name}'", where=str(path))
    return file


def _sha256(file: Path, known: dict[tuple[int, int], str]) -> str:
    status = file.stat()
    key = (status.st_dev, status.st_ino)
    if key not in known:
        known[key] = sha256_file(file)
    return known[key]


def _check_config(folder: Path, file: OnnxFile, accelerator: Accelerator) -> None:
    config, where = read_config(folder), str(folder / CONFIG_NAME)
    if config.name != folder.name:
        raise RepositoryError(f"its name is '{config.name}', not that of its folder", where=where)
    if config.backend != BACKEND:
        raise RepositoryError(f"its backend is '{config.backend}', not '{BACKEND}'", where=where)
    if [group.kind for group in config.instance_group] != [pb.ModelInstanceGroup.KIND_GPU]:
        raise RepositoryError("it is not for a GPU (instance_group)", where=where)
    if accelerator_of(config) != accelerator:
        raise RepositoryError(f"it does not ask for {accelerator}, which {GRAPHS_NAME} names", where=where)
    if (config.max_batch_size > 0) != file.takes_batches:
        raise RepositoryError("its max_batch_size does not fit the graph's axes", where=where)
    if config.HasField("dynamic_batching") and not config.max_batch_size:
        raise RepositoryError("it has dynamic_batching without a max_batch_size", where=where)
    _check_values("input", config.input, file.inputs, file, where)
    _check_values("output", config.output, file.outputs, file, where)


def _check_values(
    kind: str,
    configured: Iterable[Any],
    values: Iterable[Value],
    file: OnnxFile,
    where: str,
) -> None:
    """Names, types and axes are those of the ONNX file."""
    found = {one.name: one for one in configured}
    wanted = {value.name: value for value in values}
    if found.keys() != wanted.keys():
        raise RepositoryError(f"its {kind}s are {_listed(found)}; the graph's are {_listed(wanted)}", where=where)
    for name, value in wanted.items():
        one = found[name]
        if one.data_type != data_type(value):
            told = pb.DataType.Name(one.data_type)
            raise RepositoryError(f"the {kind} '{name}' is {told}, in the graph {value.data_type}", where=where)
        if list(one.dims) != dims(value, file):
            raise RepositoryError(
                f"the {kind} '{name}' has the dims {list(one.dims)}, in the graph {dims(value, file)}", where=where
            )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"

"""What is laid out for a Triton with a GPU, beside a package that stays as it was signed."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from common.errors import RepositoryError, UsageError
from serving.gpu.accelerators import ACCELERATORS, LOAD_TIMEOUT_S, parse_accelerator
from serving.gpu.check import check_repository
from serving.gpu.config import GpuOptions, read_config
from serving.gpu.layout import GraphLayout
from serving.package.manifest import read_manifest
from serving.package.verify import verify
from tests.packages import change_and_sign
from tests.serving.gpu.conftest import LayOut

GRAPHS = {"coarse", "draw", "fine", "image_decoder", "prefill"}
POOLED = GRAPHS - {"draw"}
"""Those whose weights lie in `weights.bin`; the tiny engine's `draw.onnx` holds its own."""


def test_every_graph_of_the_package_is_a_model_named_by_its_digest(lay_out: LayOut, packages: dict[str, Path]) -> None:
    laid = lay_out()
    digest = packages["int8"].name
    assert laid.by_graph == {graph: f"generator-{digest[:12]}-tensorrt-{graph}" for graph in GRAPHS}
    assert {path.name for path in laid.models.iterdir()} == {"generator", *laid.by_graph.values()}
    for graph in GRAPHS:
        files = {path.relative_to(laid.model(graph)).as_posix() for path in laid.model(graph).rglob("*.*")}
        assert files == {"config.pbtxt", "1/model.onnx"} | ({"1/weights.bin"} if graph in POOLED else set())


def test_the_graphs_are_the_verified_copys_own_files_and_no_signed_file_changes(
    lay_out: LayOut, key_folder: Path, packages: dict[str, Path]
) -> None:
    laid = lay_out()
    engine = laid.package / "1" / "engine"
    for graph in GRAPHS:
        assert (laid.model(graph) / "1" / "model.onnx").samefile(engine / f"{graph}.onnx")
    for graph in POOLED:
        assert (laid.model(graph) / "1" / "weights.bin").samefile(engine / "weights.bin")
    (laid.package / "graphs.json").unlink()
    assert verify(laid.package, key_folder, expected_digest=packages["int8"].name)


def test_where_the_file_system_has_no_hard_links_they_are_copies(
    lay_out: LayOut, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    laid = lay_out()
    weights = laid.model("fine") / "1" / "weights.bin"
    assert weights.stat().st_nlink == 1
    assert weights.read_bytes() == (laid.package / "1" / "engine" / "weights.bin").read_bytes()


def test_only_a_graph_whose_first_axis_is_the_batch_takes_requests_together(lay_out: LayOut) -> None:
    laid = lay_out()
    largest = {graph: read_config(laid.model(graph)).max_batch_size for graph in GRAPHS}
    assert largest == {"draw": 4, "image_decoder": 4, "coarse": 0, "fine": 0, "prefill": 0}
    for graph in GRAPHS:
        config = read_config(laid.model(graph))
        assert config.HasField("dynamic_batching") == (largest[graph] > 0)
    dims = {one.name: list(one.dims) for one in read_config(laid.model("draw")).input}
    assert dims == {"text_ids": [-1], "sketch_noise": [64, 24]}  # without the batch
    past = read_config(laid.model("prefill")).output[0]
    assert (past.name, list(past.dims)) == ("past", [2, 2, -1, 2, -1, 4])


@pytest.mark.parametrize(("precision", "mode"), [("int8", "INT8"), ("fp32", "FP32")])
def test_tensorrt_computes_in_the_packages_precision(lay_out: LayOut, precision: str, mode: str) -> None:
    config = read_config(lay_out(precision, engine_cache="/var/cache/engines").model("fine"))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert accelerator.name == "tensorrt"
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/var/cache/engines"}
    assert dict(accelerator.parameters) == {"precision_mode": mode} | cache
    assert [group.count for group in config.instance_group] == [1]


def test_without_tensorrt_and_a_cache_nothing_is_said_of_them(lay_out: LayOut) -> None:
    assert not read_config(lay_out(accelerator="onnxruntime").model("fine")).HasField("optimization")
    config = read_config(lay_out(accelerator="tensorrt", instances=2).model("fine"))
    (accelerator,) = config.optimization.execution_accelerators.gpu_execution_accelerator
    assert set(accelerator.parameters) == {"precision_mode"}
    assert [group.count for group in config.instance_group] == [2]


def from_before(package: Path) -> None:
    (package / "1" / "runtime" / "bls.py").unlink()


def reads_elsewhere(package: Path) -> None:
    file = package / "1" / "engine" / "coarse.onnx"
    model = onnx.load(file, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "../../../secret" if entry.key == "location" else entry.value
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (from_before, "cannot ask Triton models .* export it again"),
        (reads_elsewhere, r"coarse.onnx: it reads '\.\./\.\./\.\./secret'"),
    ],
)
def test_a_package_that_cannot_be_laid_out_is_refused_and_leaves_nothing(
    packages: dict[str, Path], key_folder: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    copy = Path(shutil.copytree(packages["int8"], tmp_path / "store" / "package"))
    package = change_and_sign(copy, change, key_folder)
    models = tmp_path / "models"
    models.mkdir()
    with pytest.raises(RepositoryError) as refused:
        GraphLayout(GpuOptions(accelerator="tensorrt")).write(package, read_manifest(package), "generator", models)
    assert re.search(message, str(refused.value), re.DOTALL)
    assert not (package / "graphs.json").exists()
    with pytest.raises(RepositoryError):
        check_repository(models, "generator", package=package)


def test_an_accelerator_that_there_is_not_is_refused() -> None:
    assert parse_accelerator("none") is None
    assert [parse_accelerator(name) for name in ACCELERATORS] == ["onnxruntime", "tensorrt"]
    assert LOAD_TIMEOUT_S.keys() == {None, *ACCELERATORS}
    with pytest.raises(UsageError, match=r"no accelerator 'cuda'\s.*none, onnxruntime or tensorrt"):
        parse_accelerator("cuda")

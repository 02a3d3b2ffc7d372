"""Who computes a package's graphs. The onnxruntime of the tests has the CPU alone."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from common.errors import SettingsError
from components.export.settings import ExportSettings
from serving.package.runtime.generator import Generator
from serving.package.runtime.providers import PROVIDERS, load_graph
from tests.engines import write_engine
from tests.packages import RUNTIME, build

HAS_GPU = "CUDAExecutionProvider" in onnxruntime.get_available_providers()


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "engine") / "fp32" / "coarse.onnx"


def test_the_cpu_computes_what_nothing_else_is_there_for(graph: Path) -> None:
    assert load_graph(graph, 1, "cpu").get_providers() == ["CPUExecutionProvider"]
    first = load_graph(graph, 1, "auto").get_providers()[0]
    assert first == ("CUDAExecutionProvider" if HAS_GPU else "CPUExecutionProvider")


@pytest.mark.skipif(HAS_GPU, reason="this onnxruntime has a GPU")
@pytest.mark.parametrize(("provider", "missing"), [("cuda", "CUDA"), ("tensorrt", "Tensorrt")])
def test_a_provider_that_is_not_there_is_named_with_what_to_do(graph: Path, provider: str, missing: str) -> None:
    with pytest.raises(ValueError, match=f"no {missing}ExecutionProvider here, .*CPU.*: set export.provider=cpu"):
        load_graph(graph, 1, provider)


def test_a_provider_that_nobody_knows_is_refused(graph: Path) -> None:
    with pytest.raises(ValueError, match="no provider 'npu'; there are auto, cpu, cuda, tensorrt"):
        load_graph(graph, 1, "npu")
    for known in ("auto", *PROVIDERS):
        assert ExportSettings.parse({"provider": known}, where="export").provider == known
    with pytest.raises(SettingsError, match="provider"):
        ExportSettings.parse({"provider": "npu"}, where="export")


@pytest.mark.skipif(HAS_GPU, reason="this onnxruntime has a GPU")
def test_a_package_is_computed_by_what_it_names(tmp_path: Path) -> None:
    engine = write_engine(tmp_path / "engine")
    Generator(build(engine, tmp_path / "packages", tmp_path / "keys") / "1").check()
    runtime = replace(RUNTIME, provider="cuda")
    package = build(engine, tmp_path / "packages", tmp_path / "keys", runtime=runtime)
    with pytest.raises(ValueError, match="no CUDAExecutionProvider here"):
        Generator(package / "1")

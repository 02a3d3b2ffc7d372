"""Who computes a package's graphs. The onnxruntime of the tests has the CPU alone."""

from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from common.errors import SettingsError
from components.export.settings import ExportSettings
from serving.package.runtime.generator import Generator
from serving.package.runtime.providers import PROVIDERS, ProviderError, load_graph, refuse_fallback
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
    with pytest.raises(ProviderError, match=f"no {missing}ExecutionProvider here, .*CPU.*: set export.provider=cpu"):
        load_graph(graph, 1, provider)


@pytest.mark.skipif(HAS_GPU, reason="this onnxruntime has a GPU")
@pytest.mark.parametrize(("provider", "absent"), [("cuda", "CUDA"), ("tensorrt", "Tensorrt")])
def test_a_session_that_fell_back_to_the_cpu_is_refused(graph: Path, provider: str, absent: str) -> None:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    for content in ("cpu", "auto"):
        refuse_fallback(session, content)
    with pytest.raises(
        ProviderError, match=f"has {absent}ExecutionProvider but could not start it, and computes with CPU"
    ):
        refuse_fallback(session, provider)


@pytest.mark.skipif(HAS_GPU, reason="this onnxruntime has a GPU")
def test_a_provider_that_is_built_in_and_does_not_start_computes_nothing(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An onnxruntime built for GPUs says so on any machine; this one then warns and takes the CPU, as that one does."""
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(ProviderError, match="could not start"),
    ):
        load_graph(graph, 1, "cuda")
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        assert load_graph(graph, 1, "auto").get_providers() == ["CPUExecutionProvider"]


def test_a_provider_that_nobody_knows_is_refused(graph: Path) -> None:
    with pytest.raises(ProviderError, match="no provider 'npu'; there are auto, cpu, cuda, tensorrt"):
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
    with pytest.raises(ProviderError, match="no CUDAExecutionProvider here"):
        Generator(package / "1")

"""Imports point one way (docs/architecture.md), and light modules stay light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = ("common", "components", "model", "pipelines", "serving", "benchmarks", "emuflow_client", "tests")
ALLOWED = {
    "common": {"common"},
    "model": {"common", "model"},
    "serving": {"common", "serving", "model.decoding", "emuflow_client"},
    "components": {"common", "components", "model", "serving", "emuflow_client"},
    "pipelines": {
        "common",
        "components",
        "model",
        "pipelines",
        "serving",
        "emuflow_client",
        "benchmarks.decode",
        "benchmarks.experiments",
        "benchmarks.gate",
        "benchmarks.int8",
        "benchmarks.modality_gate",
        "benchmarks.release",
        "benchmarks.serving",
        "benchmarks.soak",
        "benchmarks.training",
    },
}
HEAVY = ("torch", "mlflow", "deepspeed", "great_expectations", "kfp")
CLIENT_NEEDS = {"tritonclient", "numpy", "grpc", "google", "emuflow_client"}
RUNTIME_NEEDS = {"numpy", "onnxruntime", "triton_python_backend_utils"}


def imports(file: Path) -> Iterator[str]:
    """The absolute names of every module that `file` imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text(), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def python_files(folder: str) -> list[Path]:
    files = [p for p in sorted((ROOT / folder).rglob("*.py")) if "serving/client" not in p.relative_to(ROOT).as_posix()]
    assert files, f"{folder} is empty: the test looks at the wrong place"
    return files


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_imports_only_what_it_may(part):
    wrong = [
        f"{file.relative_to(ROOT)}: {name}"
        for file in python_files(part)
        for name in imports(file)
        if name.partition(".")[0] in OURS
        and not any(name == allowed or name.startswith(f"{allowed}.") for allowed in ALLOWED[part])
    ]
    assert not wrong


def third_party(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names)


def test_the_client_needs_only_tritonclient_and_numpy():
    for file in sorted((ROOT / "serving" / "client" / "emuflow_client").rglob("*.py")):
        assert third_party(imports(file)) <= CLIENT_NEEDS, file


def test_the_runtime_inside_a_package_needs_only_numpy_and_onnxruntime():
    files = [*(ROOT / "serving" / "package" / "runtime").rglob("*.py"), ROOT / "serving" / "package" / "model.py"]
    for file in files:
        foreign = third_party(imports(file)) - {"model", "runtime", "decoding"}
        assert foreign <= RUNTIME_NEEDS, file
    for file in (ROOT / "model" / "decoding").glob("*.py"):
        assert third_party(imports(file)) <= {"numpy", "model"}, file


@pytest.mark.parametrize("module", ["pipelines.cli", "pipelines.settings", "components.step", "serving.deployment"])
def test_light_modules_load_no_heavy_library(module):
    check = f"import sys, {module}; print([n for n in {HEAVY!r} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"

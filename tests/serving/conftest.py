"""A tiny engine, packages of it, and one real Triton server for the tests of serving."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.server import TritonServer
from tests.engines import write_engine
from tests.packages import build
from tests.serving.served import Served, eventually
from tests.serving.tampering import Tamper, Trap, flip_an_engine_s_byte, garble_the_manifest


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "engine")


@pytest.fixture(scope="session")
def key_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="session")
def package_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "packages"


@pytest.fixture(scope="session")
def packages(engine: Path, key_folder: Path, package_store: Path) -> dict[str, Path]:
    """The engine's two packages, by precision: other weights, so other images."""
    return {precision: build(engine, package_store, key_folder, precision) for precision in ("int8", "fp32")}


@pytest.fixture
def own_store(tmp_path: Path, package_store: Path, packages: dict[str, Path]) -> Path:
    """A copy of the package store that a test may damage."""
    assert packages
    return Path(shutil.copytree(package_store, tmp_path / "store"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, key_folder: Path) -> Iterator[TritonServer]:
    with TritonServer(tmp_path_factory.mktemp("triton"), key_folder, stop_grace_s=0) as running:
        yield running


@pytest.fixture
def served(tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path) -> Iterator[Served]:
    """A running `serve` that answers with the INT8 package."""
    with Served(tmp_path / "serving", package_store, key_folder, packages["int8"].name) as running:
        eventually(lambda: running.version() == packages["int8"].name)
        yield running


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


@pytest.fixture(params=["source", "bytecode", "engine", "manifest"])
def tamper(request: pytest.FixtureRequest, trap: Trap) -> Tamper:
    """Alters a copy of a package in one of many ways."""
    ways = {
        "source": trap.in_source,
        "bytecode": trap.in_bytecode,
        "engine": flip_an_engine_s_byte,
        "manifest": garble_the_manifest,
    }
    return ways[request.param]

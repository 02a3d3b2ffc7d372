"""A tiny engine, packages of it, and one real Triton server for the tests of serving."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.server import TritonServer
from tests.engines import write_engine
from tests.packages import build


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


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, key_folder: Path) -> Iterator[TritonServer]:
    with TritonServer(tmp_path_factory.mktemp("triton"), key_folder, stop_grace_s=0) as running:
        yield running

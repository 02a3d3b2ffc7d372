"""A second package in the server: it comes and goes as it is wanted, and never takes the champion with it."""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient, GeneratorError
from serving.canary import CANARY_NAME
from serving.deployment import read_state
from tests.packages import change_and_sign
from tests.serving.served import Served, eventually


class Wanted:
    """What a test wants as the canary."""

    def __init__(self) -> None:
        self.digest: str | None = None
        self.broken = False

    def __call__(self) -> str | None:
        if self.broken:
            raise OSError("the database is away")
        return self.digest


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


@pytest.fixture
def store(tmp_path: Path, package_store: Path, packages: dict[str, Path]) -> Path:
    assert packages
    return Path(shutil.copytree(package_store, tmp_path / "store"))


@pytest.fixture
def served(
    tmp_path: Path, store: Path, packages: dict[str, Path], key_folder: Path, wanted: Wanted
) -> Iterator[Served]:
    folder = tmp_path / "serving"
    with Served(folder, store, key_folder, packages["int8"].name, canary=wanted) as running:
        eventually(lambda: running.version() == packages["int8"].name)
        yield running


def canary_version(served: Served) -> str | None:
    """The package that answers as the canary; `None` where there is none."""
    state = read_state(served.folder)
    if state is None:
        return None
    try:
        with GeneratorClient(state.grpc_endpoint, timeout_s=5, retries=0, model=CANARY_NAME) as client:
            return client.generate("a red seven").version
    except GeneratorError:
        return None


def test_it_comes_and_goes_and_comes_back_with_a_server_that_died(
    served: Served, wanted: Wanted, packages: dict[str, Path]
) -> None:
    champion, canary = packages["int8"].name, packages["fp32"].name
    wanted.digest = canary
    eventually(lambda: canary_version(served) == canary)
    served.kill_server()
    eventually(lambda: served.version() == champion and canary_version(served) == canary)
    wanted.broken = True
    time.sleep(0.5)
    assert canary_version(served) == canary
    wanted.broken, wanted.digest = False, champion
    eventually(lambda: canary_version(served) == champion)
    wanted.digest = None
    eventually(lambda: canary_version(served) is None)
    assert served.version() == champion


def test_one_that_cannot_be_loaded_or_ends_the_server_leaves_the_champion(
    served: Served, wanted: Wanted, store: Path, packages: dict[str, Path], key_folder: Path
) -> None:
    champion = packages["int8"].name

    def deadly(package: Path) -> None:
        file = package / "1" / "model.py"
        kill = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
        file.write_text(file.read_text() + f"\n{kill}\n")

    bad = change_and_sign(Path(shutil.copytree(store / packages["fp32"].name, store / "work")), deadly, key_folder)
    wanted.digest = "0" * 64
    time.sleep(0.5)
    assert served.version() == champion
    wanted.digest = bad.name
    eventually(lambda: len(served.changes) >= 2, timeout_s=60)  # the server was started again
    eventually(lambda: served.version() == champion)
    time.sleep(2)
    assert served.version() == champion and len(served.changes) == 2
    wanted.digest = packages["fp32"].name
    eventually(lambda: canary_version(served) == packages["fp32"].name)

"""A copy of the home of the two real runs, whose files the tests may change; they put back what they changed."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.home import Home
from components.step import RELEASE_URL_VARIABLE
from pipelines.connection import TRACKING_VARIABLE
from pipelines.lineage.collect import trace
from pipelines.lineage.sources import Sources, read_sources
from pipelines.lineage.tree import Check, Lineage


@dataclass(frozen=True)
class Place:
    """The copied home; `child` is the second run's package, `parent` the first one's, which became the champion."""

    home: Home
    child: str
    parent: str
    child_run: str
    parent_run: str

    def run(self) -> Path:
        return self.home.run(self.child_run)

    def package(self) -> Path:
        return self.home.packages / self.child

    def sources(self) -> Sources:
        return read_sources(self.home)

    def lineage(self) -> Lineage:
        return trace(self.sources(), self.child)


@pytest.fixture(scope="session")
def copied_home(first, second, tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("lineage") / "runs"
    ignored = shutil.ignore_patterns("great_expectations", "work", "cache", "serving")
    shutil.copytree(first.chain.home, root, symlinks=True, ignore=ignored)
    child, parent = second.status["last_run"]["candidate"], first.status["last_run"]["candidate"]
    return Place(Home(root), child, parent, second.folder.name, first.folder.name)


@pytest.fixture
def place(copied_home: Place, monkeypatch: pytest.MonkeyPatch) -> Place:
    """With the copy's own stores in the environment, which the commands of other tests leave theirs in."""
    monkeypatch.setenv(TRACKING_VARIABLE, copied_home.home.tracking_uri)
    monkeypatch.setenv(RELEASE_URL_VARIABLE, copied_home.home.release_url)
    return copied_home


def by_outcome(lineage: Lineage, outcome: str) -> dict[str, Check]:
    return {check.name: check for check in lineage.checks() if check.outcome == outcome}


@pytest.fixture
def outcomes() -> Callable[[Lineage, str], dict[str, Check]]:
    """The checks of a lineage that came to an outcome, by name."""
    return by_outcome


@pytest.fixture
def altered() -> Callable[[Path], contextlib.AbstractContextManager[None]]:
    """Change one byte in the middle of a file for a block."""
    return _altered


@contextlib.contextmanager
def _altered(file: Path) -> Iterator[None]:
    content = file.read_bytes()
    middle = len(content) // 2
    try:
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        yield
    finally:
        file.write_bytes(content)

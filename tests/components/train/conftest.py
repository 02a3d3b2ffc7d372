"""Data and one training that nothing interrupts, for the tests of training."""

from pathlib import Path

import pytest

from components.train.train import train
from tests.components.patterns import MODEL, write_patterns
from tests.components.train.trainings import settings


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Tokenizers and shards."""
    return write_patterns(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def uninterrupted(data: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a training of 40 steps by two ranks."""
    tokenizers, shards = data
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(settings(), MODEL, shards, tokenizers, None, folder / "work", folder / "checkpoint")
    return folder / "checkpoint"

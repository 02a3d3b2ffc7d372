"""What the benchmarks' slow tests share: a judge takes a minute and more to train."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache in which trained judges are kept."""
    return tmp_path_factory.mktemp("judges")

"""A place of its own for each test of promotion."""

import shutil
from pathlib import Path

import pytest

from tests.components.promote.place import Candidate, Place
from tests.engines import write_engine


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "engine")


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's tables, made once: its migrations take seconds."""
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    url = f"sqlite:///{file}"
    MlflowClient(tracking_uri=url, registry_uri=url).search_registered_models()
    return file


@pytest.fixture
def place(tmp_path: Path, engine: Path, empty_database: Path) -> Place:
    (tmp_path / "mlflow").mkdir()
    shutil.copyfile(empty_database, tmp_path / "mlflow" / "mlflow.db")
    return Place(tmp_path, engine, f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")


@pytest.fixture
def champions(place: Place) -> tuple[Candidate, Candidate]:
    """Two, one after the other; the second one is the champion."""
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted()
    return first, second

"""An experiment in its stores, and events that are made by hand."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import Experiment, canary
from serving.release.experiments.policy import Policy
from serving.release.experiments.states import ExperimentStore

CHAMPION, CANARY = "a" * 64, "b" * 64
POLICY = Policy(window_s=0, settle_s=0, requests_per_user=1, min_users=20)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'experiments.db'}"


@pytest.fixture
def events(url: str) -> Iterator[EventStore]:
    store = EventStore(url)
    yield store
    store.close()


@pytest.fixture
def states(url: str) -> Iterator[ExperimentStore]:
    store = ExperimentStore(url)
    yield store
    store.close()


@pytest.fixture
def experiment(states: ExperimentStore) -> Experiment:
    """Running, with a fixed salt, so that the same users are on the same arms in each run of the tests."""
    made = canary("e", control_digest=CHAMPION, canary_digest=CANARY, salt="fixed-salt", policy=POLICY)
    return states.change(made, expected_sequence=0, actor="tester", reason="start").experiment

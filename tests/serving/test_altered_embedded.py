"""Fault 22 in the running server's own repository: a copy that was altered there is never loaded again, the package store's
takes its place."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from serving.control import ModelControl
from serving.control_key import key_of
from serving.deployment import locked, read_state, write_state
from tests.serving.served import Served, eventually
from tests.serving.tampering import Tamper, Trap, is_copy_of


def live(served: Served) -> Path:
    return served.folder / "repository" / "models" / "generator"


def unload(served: Served) -> None:
    state = read_state(served.folder)
    assert state is not None
    ModelControl(state.grpc_endpoint, key=key_of(served.folder)).unload("generator")


def serves(served: Served, digest: str) -> bool:
    state = read_state(served.folder)
    return state is not None and state.digest == digest == served.version()


def test_fault_22_what_was_altered_is_replaced_when_the_model_was_unloaded(
    served: Served, packages: dict[str, Path], tamper: Tamper, trap: Trap, caplog: pytest.LogCaptureFixture
) -> None:
    tamper(live(served))
    unload(served)
    eventually(lambda: "has the model 'generator' no more" in caplog.text)
    eventually(lambda: serves(served, packages["int8"].name))
    assert not trap.sprung.exists()
    assert is_copy_of(live(served), packages["int8"])


def test_fault_22_what_was_altered_is_replaced_when_the_server_is_started_again(
    served: Served, packages: dict[str, Path], tamper: Tamper, trap: Trap
) -> None:
    before = read_state(served.folder)
    assert before is not None
    with locked(served.folder):  # it is not started again before that
        served.kill_server()
        tamper(live(served))
    eventually(lambda: (state := read_state(served.folder)) is not None and state.pid != before.pid)
    eventually(lambda: serves(served, packages["int8"].name))
    assert not trap.sprung.exists()
    assert is_copy_of(live(served), packages["int8"])


def test_fault_22_what_was_altered_is_replaced_when_a_promotion_was_killed(
    served: Served, packages: dict[str, Path], tamper: Tamper, trap: Trap
) -> None:
    """In the middle of a load, so that nobody knows what the server has read."""
    with locked(served.folder):
        state = read_state(served.folder)
        assert state is not None
        write_state(served.folder, replace(state, digest=None))
        tamper(live(served))
    eventually(lambda: serves(served, packages["int8"].name))
    assert not trap.sprung.exists()
    assert is_copy_of(live(served), packages["int8"])


def test_fault_22_what_was_altered_is_not_loaded_where_nothing_can_replace_it(
    tmp_path: Path,
    packages: dict[str, Path],
    own_store: Path,
    key_folder: Path,
    trap: Trap,
    caplog: pytest.LogCaptureFixture,
) -> None:
    good = packages["int8"].name
    with caplog.at_level(logging.ERROR), Served(tmp_path / "serving", own_store, key_folder, good) as served:
        eventually(lambda: serves(served, good))
        (own_store / good).rename(own_store / "elsewhere")
        trap.in_source(live(served))
        unload(served)
        eventually(lambda: caplog.text.count("there is no such package") >= 2)
        assert served.version() is None
        (own_store / "elsewhere").rename(own_store / good)
        eventually(lambda: serves(served, good))
    assert not trap.sprung.exists()

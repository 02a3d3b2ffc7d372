"""Fault 22 in the repository of a server that others run: a copy that was altered there is never loaded again, the package
store's takes its place."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import SignatureError
from emuflow_client import GeneratorClient, GeneratorError
from serving.control import LoadTimeout
from serving.control_key import ControlKey
from serving.remote import RemoteDeployment
from serving.server import TritonServer
from tests.serving.served import eventually
from tests.serving.slow import slow_copy
from tests.serving.tampering import Tamper, Trap, is_copy_of


class Theirs:
    """Their server, and what is to be served there."""

    def __init__(self, server: TritonServer, package_store: Path, key_folder: Path):
        self.server, self._store, self._keys = server, package_store, key_folder
        self.live = server.folder / "repository" / "models" / "generator"

    def deployment(self, load_timeout_s: float = 120) -> RemoteDeployment:
        return RemoteDeployment(
            self.server.grpc_endpoint,
            self.server.folder / "repository",
            self._store,
            self._keys,
            control_key=ControlKey.read(self.server.key_file),
            load_timeout_s=load_timeout_s,
        )

    def start_again(self) -> RemoteDeployment:
        """With its repository as it is."""
        self.server.stop()
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(self.server.repository, "clear", lambda: None)
            self.server.start()
        return self.deployment()

    def version(self) -> str | None:
        try:
            with GeneratorClient(self.server.grpc_endpoint, timeout_s=10, retries=0) as client:
                return client.generate("a red seven").version
        except GeneratorError:
            return None


@pytest.fixture
def theirs(tmp_path: Path, own_store: Path, key_folder: Path) -> Iterator[Theirs]:
    with TritonServer(tmp_path / "theirs", tmp_path / "no-keys", stop_grace_s=0) as running:
        yield Theirs(running, own_store, key_folder)


@pytest.fixture
def good(theirs: Theirs, packages: dict[str, Path]) -> str:
    """What it serves."""
    digest = packages["int8"].name
    theirs.deployment().reconcile(digest)
    return digest


def test_fault_22_what_was_altered_is_replaced_when_the_server_was_started_again(
    theirs: Theirs, good: str, own_store: Path, tamper: Tamper, trap: Trap
) -> None:
    tamper(theirs.live)
    deployment = theirs.start_again()
    assert theirs.version() is None, "it loads nothing by itself"
    assert deployment.reconcile(good) and not deployment.reconcile(good)
    assert theirs.version() == good and not trap.sprung.exists()
    assert is_copy_of(theirs.live, own_store / good)


def test_fault_22_what_was_altered_is_not_loaded_where_nothing_can_replace_it(
    theirs: Theirs, good: str, own_store: Path, trap: Trap
) -> None:
    (own_store / good).rename(own_store / "elsewhere")
    trap.in_source(theirs.live)
    deployment = theirs.start_again()
    for _ in range(2):
        with pytest.raises(SignatureError, match="there is no such package"):
            deployment.reconcile(good)
        assert not theirs.server.control.is_ready("generator")
    (own_store / "elsewhere").rename(own_store / good)
    assert deployment.reconcile(good)
    assert theirs.version() == good and not trap.sprung.exists()


def test_what_was_not_altered_is_loaded_where_nothing_could_replace_it(
    theirs: Theirs, good: str, own_store: Path
) -> None:
    (own_store / good).rename(own_store / "elsewhere")
    assert theirs.start_again().reconcile(good)
    assert theirs.version() == good


@pytest.fixture
def slow(theirs: Theirs, good: str, own_store: Path, key_folder: Path) -> str:
    """What the server loads, for a process that did not wait for it."""
    digest = slow_copy(own_store / good, key_folder, seconds=5).name
    with pytest.raises(LoadTimeout):
        theirs.deployment(load_timeout_s=1).reconcile(digest)
    eventually(lambda: any((theirs.live / "1" / "__pycache__").glob("model.*")))  # it has read the source
    return digest


def test_fault_22_what_was_altered_while_it_was_loaded_is_replaced(
    theirs: Theirs, slow: str, own_store: Path, trap: Trap
) -> None:
    trap.in_source(theirs.live)
    deployment = theirs.deployment(load_timeout_s=1)
    with pytest.raises(LoadTimeout, match="has not ended"):
        deployment.reconcile(slow)

    def served() -> bool:
        try:
            deployment.reconcile(slow)
        except LoadTimeout:
            return False
        return theirs.version() == slow

    eventually(served)
    assert not trap.sprung.exists()
    assert is_copy_of(theirs.live, own_store / slow)


def test_fault_22_what_was_altered_is_replaced_when_the_server_ended_while_it_was_loaded(
    theirs: Theirs, good: str, slow: str, own_store: Path, trap: Trap
) -> None:
    trap.in_source(theirs.live)
    assert theirs.start_again().reconcile(good)
    assert theirs.version() == good and not trap.sprung.exists()
    assert is_copy_of(theirs.live, own_store / good)

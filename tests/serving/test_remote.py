"""A server that was started by others is made to serve what is desired, and gets it again after a restart."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServerError, SignatureError
from emuflow_client import GeneratorClient
from serving.backoff import Backoff
from serving.control import LoadTimeout
from serving.control_key import ControlKey
from serving.remote import RemoteDeployment, follow
from serving.server import TritonServer
from tests.serving.served import eventually
from tests.serving.slow import slow_copy


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[TritonServer]:
    """A server with an empty repository, started without any of our keys."""
    with TritonServer(tmp_path / "theirs", tmp_path / "no-keys", stop_grace_s=0) as running:
        yield running


def deployment(
    theirs: TritonServer, package_store: Path, key_folder: Path, load_timeout_s: float = 120
) -> RemoteDeployment:
    return RemoteDeployment(
        theirs.grpc_endpoint,
        theirs.folder / "repository",
        package_store,
        key_folder,
        control_key=ControlKey.read(theirs.key_file),
        load_timeout_s=load_timeout_s,
    )


def version(theirs: TritonServer) -> str:
    with GeneratorClient(theirs.grpc_endpoint, timeout_s=10, retries=0) as client:
        return client.generate("a red seven").version


def test_it_serves_what_is_desired(
    theirs: TritonServer, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    remote = deployment(theirs, package_store, key_folder)
    for package in packages.values():
        assert remote.reconcile(package.name)
        assert version(theirs) == package.name
        assert not remote.reconcile(package.name)


def test_fault_22_an_altered_package_is_never_loaded(
    theirs: TritonServer, packages: dict[str, Path], package_store: Path, key_folder: Path, tmp_path: Path
) -> None:
    good, bad = packages["int8"].name, packages["fp32"].name
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    remote = deployment(theirs, store, key_folder)
    remote.reconcile(good)
    (store / bad / "1" / "model.py").write_text("altered")
    with pytest.raises(SignatureError):
        remote.reconcile(bad)
    assert version(theirs) == good


@pytest.mark.parametrize("fails", [False, True], ids=["and serves then", "and fails then"])
def test_a_load_that_does_not_end_in_time_is_waited_for_before_anything_moves(
    theirs: TritonServer,
    packages: dict[str, Path],
    package_store: Path,
    key_folder: Path,
    tmp_path: Path,
    fails: bool,
) -> None:
    store, good = Path(shutil.copytree(package_store, tmp_path / "store")), packages["int8"].name
    slow = slow_copy(store / good, key_folder, seconds=3, fails=fails).name
    patient, hasty = (deployment(theirs, store, key_folder, load_timeout_s=seconds) for seconds in (60, 1))
    patient.reconcile(good)
    for _ in range(2):
        with pytest.raises(LoadTimeout):
            hasty.reconcile(slow)
        assert theirs.repository.digest("generator") == slow, "Triton may read it at any time"
    if fails:
        with pytest.raises(ServerError, match="too late"):
            patient.reconcile(slow)
        assert patient.reconcile(good) and not patient.reconcile(good)
    else:
        assert patient.reconcile(slow) and not patient.reconcile(slow)
    assert version(theirs) == theirs.repository.digest("generator") == (good if fails else slow)


def test_a_server_that_is_not_there_is_an_error(
    theirs: TritonServer, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    remote = deployment(theirs, package_store, key_folder)  # stopping removes the key
    theirs.stop()
    with pytest.raises(ServerError, match="does not answer"):
        remote.reconcile(packages["int8"].name)


def test_following_outlives_failures_and_a_model_that_was_unloaded(
    theirs: TritonServer, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    wanted, served, stop = [packages["int8"].name], [], threading.Event()
    asked = threading.Semaphore(0)

    def ask() -> str:
        asked.release()
        if not wanted[0]:
            raise OSError("the database is gone")
        return wanted[0]

    thread = threading.Thread(
        target=follow,
        args=(deployment(theirs, package_store, key_folder), ask, stop),
        kwargs={"on_change": served.append, "poll_s": 0.05, "retry": Backoff(first_s=0.1, longest_s=0.2)},
    )
    thread.start()
    try:
        eventually(lambda: served == [packages["int8"].name])
        wanted[0] = "0" * 64  # there is no such package
        eventually(lambda: version(theirs) == packages["int8"].name)
        wanted[0] = packages["int8"].name
        theirs.control.unload("generator")  # as a restart of the server would
        eventually(lambda: len(served) == 2)
        wanted[0] = ""  # nobody can be asked: the package is loaded again all the same
        while asked.acquire(blocking=False):
            pass
        assert asked.acquire(timeout=10)
        theirs.control.unload("generator")
        eventually(lambda: len(served) == 3)
        wanted[0] = packages["fp32"].name
        eventually(lambda: served[-1] == packages["fp32"].name)
        assert version(theirs) == packages["fp32"].name
    finally:
        stop.set()
        thread.join()

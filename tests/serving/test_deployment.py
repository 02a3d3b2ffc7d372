"""What is served follows what is desired, also when a package is bad or the server dies."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from common.errors import ServerError, SignatureError
from emuflow_client import GeneratorClient, GeneratorError
from serving.deployment import EmbeddedDeployment, ServingState, read_state, reconcile_if_running, serve
from tests.packages import change_and_sign


class Served:
    """`serve` in a thread, and the digest that it is to follow."""

    def __init__(self, folder: Path, package_store: Path, key_folder: Path, desired: str):
        self.folder, self.package_store, self.desired = folder, package_store, desired
        self.changes: list[ServingState] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=serve,
            kwargs={
                "folder": folder,
                "package_store": package_store,
                "key_folder": key_folder,
                "desired": lambda: self.desired,
                "stop": self._stop,
                "poll_s": 0.1,
                "stop_grace_s": 0,
                "on_change": self.changes.append,
            },
        )
        self._thread.start()

    def version(self) -> str | None:
        """The digest of the package that answers now, or `None`."""
        state = read_state(self.folder)
        if state is None:
            return None
        try:
            with GeneratorClient(state.grpc_endpoint, timeout_s=5, retries=0) as client:
                return client.generate("a red seven").version
        except GeneratorError:
            return None

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def eventually(condition: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)


@pytest.fixture
def served(tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path) -> Iterator[Served]:
    running = Served(tmp_path / "serving", package_store, key_folder, packages["int8"].name)
    try:
        eventually(lambda: running.version() == packages["int8"].name)
        yield running
    finally:
        running.stop()


def unanswering(package: Path) -> None:
    """Loads and passes its own check, then fails every request, its warm-up first."""
    model = package / "1" / "model.py"
    model.write_text(
        model.read_text().replace("asked = parse(", "raise RuntimeError('no answer')\n            asked = (")
    )


def broken(package: Path) -> None:
    (package / "1" / "engine" / "fine.onnx").write_bytes(b"no graph")


def test_the_server_follows_the_desired_package(served: Served, packages: dict[str, Path]) -> None:
    served.desired = packages["fp32"].name
    eventually(lambda: served.version() == packages["fp32"].name)
    assert [change.digest for change in served.changes] == [packages["int8"].name, packages["fp32"].name]


def test_a_promotion_reconciles_the_server_of_another_process(
    served: Served, packages: dict[str, Path], package_store: Path
) -> None:
    served.desired = packages["fp32"].name
    assert reconcile_if_running(served.folder, package_store, packages["fp32"].name)
    assert served.version() == packages["fp32"].name
    assert not EmbeddedDeployment(served.folder, package_store).reconcile(packages["fp32"].name)


@pytest.mark.parametrize("change", [broken, unanswering])
def test_fault_14_a_bad_package_is_removed_and_the_old_one_serves_on(
    served: Served,
    packages: dict[str, Path],
    package_store: Path,
    key_folder: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    good = packages["int8"].name
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    bad = change_and_sign(Path(shutil.copytree(store / good, store / "bad")), change, key_folder)
    with pytest.raises(ServerError):
        reconcile_if_running(served.folder, store, bad.name)
    eventually(lambda: served.version() == good)
    assert (served.folder / "repository" / "models" / "generator" / "manifest.json").is_file()
    state = read_state(served.folder)
    assert state is not None and state.digest == good


def test_fault_22_an_altered_package_is_never_served(
    served: Served, packages: dict[str, Path], package_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    (store / packages["fp32"].name / "1" / "model.py").write_text("altered")
    with pytest.raises(SignatureError):
        reconcile_if_running(served.folder, store, packages["fp32"].name)
    assert served.version() == packages["int8"].name


def test_a_desired_package_that_is_not_there_leaves_the_old_one(served: Served, packages: dict[str, Path]) -> None:
    served.desired = "0" * 64
    time.sleep(0.5)
    assert served.version() == packages["int8"].name
    served.desired = packages["fp32"].name
    eventually(lambda: served.version() == packages["fp32"].name)


def test_fault_20_a_server_that_was_killed_comes_back_with_what_is_desired(
    served: Served, packages: dict[str, Path]
) -> None:
    before = read_state(served.folder)
    assert before is not None
    os.kill(psutil.Process(before.pid).children()[0].pid, signal.SIGKILL)
    eventually(lambda: served.version() == packages["int8"].name)
    after = read_state(served.folder)
    assert after is not None and after.pid != before.pid


def test_a_second_server_in_the_same_folder_is_refused(
    served: Served, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    with pytest.raises(ServerError, match="runs here already"):
        serve(
            folder=served.folder,
            package_store=package_store,
            key_folder=key_folder,
            desired=lambda: packages["int8"].name,
            stop=threading.Event(),
        )
    assert served.version() == packages["int8"].name


def test_without_a_server_nothing_is_reconciled(tmp_path: Path, package_store: Path) -> None:
    assert not reconcile_if_running(tmp_path, package_store, "0" * 64)


def test_without_a_desired_package_nothing_is_served(tmp_path: Path, key_folder: Path) -> None:
    with pytest.raises(ServerError, match="nothing to serve"):
        serve(
            folder=tmp_path, package_store=tmp_path, key_folder=key_folder, desired=lambda: None, stop=threading.Event()
        )


def test_a_first_package_that_cannot_be_served_is_an_error_and_leaves_no_server(
    tmp_path: Path, package_store: Path, key_folder: Path
) -> None:
    with pytest.raises(SignatureError):
        serve(
            folder=tmp_path,
            package_store=package_store,
            key_folder=key_folder,
            desired=lambda: "0" * 64,
            stop=threading.Event(),
        )
    assert read_state(tmp_path) is None

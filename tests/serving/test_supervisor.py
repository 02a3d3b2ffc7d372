"""The loop that serves: it follows what is desired, and no failure around it ends what serves."""

import logging
import re
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServerError, SignatureError
from serving.backoff import Backoff
from serving.control import LoadTimeout, ModelControl
from serving.control_key import key_of
from serving.deployment import EmbeddedDeployment, read_state
from serving.release.store import TABLE_NAME, ReleaseStore
from serving.repository import ModelRepository
from serving.server import TritonServer
from serving.supervisor import serve
from tests.packages import change_and_sign
from tests.serving.served import Served, eventually
from tests.serving.slow import slow_copy


def test_the_server_follows_the_desired_package(served: Served, packages: dict[str, Path]) -> None:
    served.desired = packages["fp32"].name
    eventually(lambda: served.version() == packages["fp32"].name)
    followed = [packages["int8"].name, packages["fp32"].name]
    eventually(lambda: [change.digest for change in served.changes] == followed)  # told a moment after it answers


def test_a_desired_package_that_is_not_there_leaves_the_old_one(served: Served, packages: dict[str, Path]) -> None:
    served.desired = "0" * 64
    time.sleep(0.5)
    assert served.version() == packages["int8"].name
    served.desired = packages["fp32"].name
    eventually(lambda: served.version() == packages["fp32"].name)


def test_fault_20_a_server_that_was_killed_comes_back_with_what_is_desired(
    served: Served, packages: dict[str, Path]
) -> None:
    before = served.kill_server()
    eventually(lambda: served.version() == packages["int8"].name)
    after = read_state(served.folder)
    assert after is not None and after.pid != before


@pytest.mark.parametrize(
    ("which", "how"),
    [(1, signal.SIGSTOP), (2, signal.SIGSTOP), (2, signal.SIGKILL)],
    ids=["triton stands still", "its python model stands still", "its python model died"],
)
def test_a_server_that_answers_nobody_any_more_is_started_again(
    which: int, how: signal.Signals, tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    with Served(tmp_path, package_store, key_folder, packages["int8"].name, stalled_after_s=2) as served:
        eventually(lambda: served.version() == packages["int8"].name)
        before = served.processes()
        before[which].send_signal(how)
        eventually(lambda: served.version() == packages["int8"].name)
        eventually(lambda: not [p for p in before if p.is_running()])


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


def rename_table(database: Path, old: str, new: str) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")


def promote(releases: ReleaseStore, digest: str, expected: str | None) -> None:
    releases.promote("champion", digest, expected_current=expected, evidence_digest=None, actor="test", reason="PASS")


@pytest.fixture
def releases(tmp_path: Path, key_folder: Path) -> Iterator[ReleaseStore]:
    store = ReleaseStore(f"sqlite:///{tmp_path / 'releases.db'}", key_folder)
    yield store
    store.close()


def test_fault_21_without_the_release_database_what_serves_goes_on(
    tmp_path: Path,
    packages: dict[str, Path],
    package_store: Path,
    key_folder: Path,
    releases: ReleaseStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first, second, database = packages["int8"].name, packages["fp32"].name, tmp_path / "releases.db"
    promote(releases, first, None)

    def ask() -> str | None:
        release = releases.current()
        return release.digest if release else None

    with Served(tmp_path / "serving", package_store, key_folder, first, ask=ask) as served:
        eventually(lambda: served.version() == first)
        rename_table(database, TABLE_NAME, "away")
        eventually(lambda: "cannot ask" in caplog.text)
        time.sleep(0.5)
        assert served.version() == first and len(served.changes) == 1
        served.kill_server()
        eventually(lambda: len(served.changes) == 2 and served.version() == first)
        rename_table(database, "away", TABLE_NAME)
        promote(releases, second, first)
        eventually(lambda: served.version() == second)
    assert caplog.text.count("cannot ask") == 1, "an outage is one line, not one line a poll"


def test_fault_21_at_the_start_the_release_database_must_answer(tmp_path: Path, key_folder: Path) -> None:
    def ask() -> str | None:
        raise ConnectionError("the database is down")

    with pytest.raises(ConnectionError):
        serve(folder=tmp_path, package_store=tmp_path, key_folder=key_folder, desired=ask, stop=threading.Event())
    assert read_state(tmp_path) is None


def test_the_log_of_an_outage_holds_no_password(
    tmp_path: Path,
    packages: dict[str, Path],
    package_store: Path,
    key_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = packages["int8"].name
    answers = iter([first])

    def ask() -> str | None:
        try:
            return next(answers)
        except StopIteration:
            raise ConnectionError("no answer from postgresql://emuflow:hunter2@db/emuflow") from None

    with Served(tmp_path, package_store, key_folder, first, ask=ask) as served:
        eventually(lambda: "cannot ask" in caplog.text)
        assert served.version() == first
    assert "emuflow:***@db" in caplog.text and "hunter2" not in caplog.text


def test_a_refused_package_is_tried_again_until_it_can_be_served(
    tmp_path: Path, packages: dict[str, Path], own_store: Path, key_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was still being copied, say: nobody promotes it a second time."""
    first, late = packages["int8"].name, packages["fp32"].name
    (own_store / late).rename(own_store / "elsewhere")
    with Served(tmp_path / "serving", own_store, key_folder, first) as served:
        eventually(lambda: served.version() == first)
        served.desired = late
        eventually(lambda: caplog.text.count("is not served") >= 3)
        assert served.version() == first
        (own_store / "elsewhere").rename(own_store / late)
        eventually(lambda: served.version() == late)
    assert "next try is in 0.2 s" in caplog.text and "next try is in 0.4 s" in caplog.text


def test_a_restarted_server_whose_package_cannot_be_read_serves_it_when_it_can(
    tmp_path: Path, packages: dict[str, Path], own_store: Path, key_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = packages["int8"].name
    with Served(tmp_path / "serving", own_store, key_folder, first) as served:
        eventually(lambda: served.version() == first)
        (own_store / first).rename(own_store / "elsewhere")
        served.kill_server()
        eventually(lambda: "is not served" in caplog.text)
        (own_store / "elsewhere").rename(own_store / first)
        eventually(lambda: served.version() == first)


def kills_the_server(package: Path) -> None:
    (package / "1" / "model.py").write_text("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")


def test_a_package_that_kills_the_server_is_not_tried_again(
    tmp_path: Path, packages: dict[str, Path], own_store: Path, key_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = packages["int8"].name
    copy = Path(shutil.copytree(own_store / first, own_store / "deadly"))
    deadly = change_and_sign(copy, kills_the_server, key_folder).name
    with caplog.at_level(logging.ERROR), Served(tmp_path / "serving", own_store, key_folder, first) as served:
        eventually(lambda: served.version() == first)
        served.desired = deadly
        eventually(lambda: f"package {deadly} is not tried again" in caplog.text)
        eventually(lambda: served.version() == first)
        time.sleep(1.0)
        assert served.version() == first
        assert caplog.text.count("the server died; starting it again") == 1
        served.desired = packages["fp32"].name
        eventually(lambda: served.version() == packages["fp32"].name)


def digest_in_state(folder: Path) -> str | None:
    state = read_state(folder)
    return state.digest if state else None


def test_a_model_that_was_unloaded_is_loaded_again(
    served: Served, packages: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    eventually(lambda: digest_in_state(served.folder) == packages["int8"].name)  # written a moment after it answers
    before = read_state(served.folder)
    assert before is not None
    for _ in range(2):
        caplog.clear()
        ModelControl(before.grpc_endpoint, key=key_of(served.folder)).unload("generator")
        eventually(lambda: "has the model 'generator' no more" in caplog.text)
        eventually(lambda: served.version() == packages["int8"].name)
        eventually(lambda: read_state(served.folder) == before)  # the same server, the same package


def test_a_promotion_of_what_serves_already_loads_it_where_it_was_unloaded(
    tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    first = packages["int8"].name
    with Served(tmp_path, package_store, key_folder, first) as served:
        eventually(lambda: served.version() == first)
        eventually(lambda: digest_in_state(tmp_path) == first)
        state = read_state(tmp_path)
        assert state is not None
        deployment = EmbeddedDeployment(tmp_path, package_store)
        assert not deployment.reconcile(first)
        ModelControl(state.grpc_endpoint, key=key_of(tmp_path)).unload("generator")
        deployment.reconcile(first)  # unless the loop was faster
        assert served.version() == first


@pytest.mark.parametrize("loaded_by", ["the loop", "another process"])
def test_a_load_that_does_not_end_in_time_is_cleared_up(
    loaded_by: str,
    tmp_path: Path,
    packages: dict[str, Path],
    own_store: Path,
    key_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Triton goes on with the load: whatever it comes to, server, state and files agree afterwards."""
    first = packages["int8"].name
    slow = slow_copy(own_store / first, key_folder, seconds=30).name
    folder = tmp_path / "serving"
    repository = ModelRepository(folder / "repository", key_folder)
    with Served(folder, own_store, key_folder, first, load_timeout_s=6) as served:
        eventually(lambda: served.version() == first)
        before = read_state(folder)
        assert before is not None
        if loaded_by == "the loop":
            served.desired = slow
            eventually(lambda: f"package {slow} is not tried again" in caplog.text)
        else:
            with pytest.raises(LoadTimeout, match="is loaded still"):
                EmbeddedDeployment(folder, own_store, load_timeout_s=1).reconcile(slow)
        eventually(lambda: served.version() == first)
        eventually(lambda: (state := read_state(folder)) is not None and state.digest == first)
        after = read_state(folder)
        assert after is not None and after.pid != before.pid and after.stuck_on is None
        assert repository.digest("generator") == first
        served.desired = packages["fp32"].name
        eventually(lambda: served.version() == packages["fp32"].name)
    assert caplog.text.count("starting it again") == 1


def test_until_a_late_load_is_cleared_up_no_file_moves_and_nothing_else_is_loaded(
    tmp_path: Path, packages: dict[str, Path], own_store: Path, key_folder: Path
) -> None:
    first, folder = packages["int8"].name, tmp_path / "serving"
    slow = slow_copy(own_store / first, key_folder, seconds=30).name
    with TritonServer(folder, key_folder, stop_grace_s=0, load_timeout_s=1) as server:
        with pytest.raises(LoadTimeout):
            server.load(own_store / slow, "generator", expected_digest=slow)
        assert server.repository.digest("generator") == slow, "Triton may read it at any time"
        assert server.stuck_on == slow
        with pytest.raises(ServerError, match="has not ended"):
            server.load(own_store / first, "canary")


def unwritable(log_file: Path) -> None:
    """The server cannot be started, as on a full disk."""
    log_file.rename(log_file.with_name("kept.log"))
    log_file.mkdir()


def test_a_server_that_does_not_start_is_tried_again_after_pauses(
    tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, log_file = packages["int8"].name, tmp_path / "triton.log"
    with Served(tmp_path, package_store, key_folder, first, retry=Backoff(first_s=10, longest_s=60)) as served:
        eventually(lambda: served.version() == first)
        unwritable(log_file)
        served.kill_server()
        eventually(lambda: "it did not start" in caplog.text)
        time.sleep(1.5)  # without a pause, fifteen tries
        assert caplog.text.count("it did not start") == 1 and served.error is None
        log_file.rmdir()
        eventually(lambda: served.version() == first)
    assert re.search(r"it is started again in (10|9) s", caplog.text), caplog.text


def test_a_server_that_never_starts_again_ends_the_loop_after_five_tries(
    tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, log_file = packages["int8"].name, tmp_path / "triton.log"
    with Served(tmp_path, package_store, key_folder, first) as served:
        eventually(lambda: served.version() == first)
        unwritable(log_file)
        served.kill_server()
        eventually(lambda: read_state(tmp_path) is None and caplog.text.count("starting it again") == 5)
    assert caplog.text.count("it did not start") == 4, "the fifth is the error that ends it"
    assert isinstance(served.error, ServerError) and "cannot be started" in str(served.error)

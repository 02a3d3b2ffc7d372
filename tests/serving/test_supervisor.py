"""The loop that serves: it follows what is desired, and no failure around it ends what serves."""

import logging
import shutil
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import ServerError, SignatureError
from serving.deployment import read_state
from serving.release.store import TABLE_NAME, ReleaseStore
from serving.supervisor import serve
from tests.packages import change_and_sign
from tests.serving.served import Served, eventually


@pytest.fixture
def own_store(tmp_path: Path, package_store: Path, packages: dict[str, Path]) -> Path:
    """A copy of the package store that a test may damage."""
    assert packages
    return Path(shutil.copytree(package_store, tmp_path / "store"))


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

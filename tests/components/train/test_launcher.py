"""What a training finds of compilations that were killed."""

import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from components.train.launcher import LONGEST_COMPILATION_S, extensions_folder, rank_environment, remove_stale_locks


def test_the_lock_of_a_killed_compilation_goes_and_that_of_a_living_one_stays(tmp_path):
    stale, held = tmp_path / "a" / "lock", tmp_path / "b" / "lock"
    for lock in (stale, held):
        lock.parent.mkdir()
    stale.touch()
    with held.open("w"):
        remove_stale_locks(tmp_path)
        assert not stale.exists() and held.exists()
    remove_stale_locks(tmp_path)
    assert not held.exists()


class Unreadable:
    """A process of the user `uid` that shows nobody its files."""

    def __init__(self, uid: int):
        self._uid = uid

    def open_files(self) -> list[object]:
        raise psutil.AccessDenied

    def uids(self) -> tuple[int, int, int]:
        return self._uid, self._uid, self._uid


@pytest.mark.parametrize(
    ("others", "age_s", "stays"), [(0, 5, True), (0, LONGEST_COMPILATION_S + 5, False), (1, 5, False)]
)
def test_a_young_lock_stays_where_a_process_of_its_owner_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others: int, age_s: float, stays: bool
) -> None:
    def processes() -> Iterator[Unreadable]:
        yield Unreadable(os.getuid() + others)

    lock = tmp_path / "operator" / "lock"
    lock.parent.mkdir()
    lock.touch()
    begun = time.time() - age_s
    os.utime(lock, (begun, begun))
    monkeypatch.setattr(psutil, "process_iter", processes)
    remove_stale_locks(tmp_path)
    assert lock.exists() == stays


def test_nodes_that_share_a_folder_compile_in_their_own_and_leave_the_others_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, half = tmp_path / "operator" / "operator.so", tmp_path / "half" / "half.so"
    for file in (compiled, half, half.parent / "lock"):
        file.parent.mkdir(exist_ok=True)
        file.write_text("before")
    os.utime(compiled, (1e9, 1e9))
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert extensions_folder() == tmp_path
    folders = list[Path]()
    for host in ("first", "second"):
        monkeypatch.setattr(platform, "node", lambda name=host: name)
        folders.append(Path(rank_environment(1, nodes=2)["TORCH_EXTENSIONS_DIR"]))
        (folders[-1] / "operator" / "lock").touch()  # no process that can be seen from here has it open
    first, second = folders
    assert first.name == "first" and second.name == "second"
    assert (first / "operator" / "lock").exists()
    assert (first / "operator" / "operator.so").stat().st_mtime == 1e9  # nothing is compiled again
    assert not (first / "half").exists()
    rank_environment(1)  # on one machine alone
    assert (first / "operator" / "lock").exists() and not (half.parent / "lock").exists()
    rank_environment(1, nodes=2)
    assert (first / "operator" / "lock").exists() and not (second / "operator" / "lock").exists()

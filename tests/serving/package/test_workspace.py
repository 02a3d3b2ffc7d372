"""Where packages are built: nothing stays there, whichever way a build ends."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.package.workspace import building_folder

HOST = socket.gethostname()


def leave(store: Path, name: str, age_s: float = 0) -> Path:
    folder = store / name
    (folder / "new" / "1").mkdir(parents=True)
    changed = time.time() - age_s
    os.utime(folder, (changed, changed))
    return folder


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_the_folder_goes_however_the_build_ends(tmp_path: Path) -> None:
    with building_folder(tmp_path / "store") as folder:
        (folder / "file").write_text("")
    with pytest.raises(SystemExit), building_folder(tmp_path / "store"):
        sys.exit(143)
    assert list((tmp_path / "store").iterdir()) == []


def test_what_a_killed_build_left_goes_with_the_next_one(tmp_path: Path) -> None:
    leave(tmp_path, f".building.{HOST}.{dead_process()}.0123abcd")
    leave(tmp_path, ".building.another-machine.7.0123abcd", age_s=25 * 3600)
    leave(tmp_path, ".building.0123abcd", age_s=25 * 3600)
    with building_folder(tmp_path) as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_may_still_be_built_stays(tmp_path: Path) -> None:
    kept = {
        leave(tmp_path, f".building.{HOST}.{os.getpid()}.0123abcd"),
        leave(tmp_path, f".building.another-machine.{dead_process()}.0123abcd"),
        leave(tmp_path, "a" * 64, age_s=1e6),
    }
    with building_folder(tmp_path):
        pass
    assert set(tmp_path.iterdir()) == kept

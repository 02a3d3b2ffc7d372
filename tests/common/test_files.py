"""Files appear whole or not at all, and digests say what they hold."""

import subprocess
import sys

import pytest

from common.files import atomic_path, digest_folder, digest_json, files_under, sha256_file, write_json, write_text


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "deep" / "report.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in target.parent.iterdir()] == ["report.txt"]


def test_a_folder_is_replaced_after_the_new_one_is_complete(tmp_path):
    target = tmp_path / "artifact"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.mkdir()
            (temporary / content).touch()
            assert not (target / content).exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_fault_26_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path):
    """`/dev/full` is a disk that is always full; a link to it stands in the place of the temporary file."""
    program = (
        "import os, sys; from pathlib import Path; from common.files import atomic_path\n"
        "with atomic_path(Path(sys.argv[1])) as temporary:\n"
        "    temporary.symlink_to('/dev/full')\n"
        "    with temporary.open('wb', buffering=0) as handle: handle.write(b'x')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "a")], capture_output=True, text=True)
    assert done.returncode != 0 and "DiskFullError" in done.stderr and "free some space" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folders_digest_is_over_names_and_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_text(folder / "b" / "c.txt", "c")
        write_text(folder / "a.txt", "a")
    assert digest_folder(one) == digest_folder(two)
    assert [path.relative_to(one).as_posix() for path in files_under(one)] == ["a.txt", "b/c.txt"]
    (two / "a.txt").rename(two / "d.txt")
    assert digest_folder(one) != digest_folder(two)
    write_text(two / "a.txt", "changed")
    assert sha256_file(one / "a.txt") != sha256_file(two / "a.txt")


def test_the_order_of_keys_does_not_change_a_digest():
    assert digest_json({"a": 1, "b": [1, 2]}) == digest_json({"b": [1, 2], "a": 1}) != digest_json({"a": 1})

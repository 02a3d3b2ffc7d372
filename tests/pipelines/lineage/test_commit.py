"""The commit that a package names, looked for in a real checkout."""

import subprocess
from pathlib import Path

import pytest

from pipelines.lineage.runs import commit_check


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", *identity, "-C", str(tmp_path), "commit", "-q", "--allow-empty", "-m", "one"], check=True)
    return tmp_path


def test_a_commit_of_the_checkout_is_ok_and_a_dirty_one_a_warning(checkout):
    head = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    commit = head.stdout.strip()
    assert commit_check(commit, checkout).outcome == "ok"
    assert commit_check(f"{commit}-dirty", checkout).outcome == "warning"


@pytest.mark.parametrize("commit", ["0" * 40, "unknown", None, "HEAD", "--help"])
def test_another_one_cannot_be_checked(checkout, commit):
    assert commit_check(commit, checkout).outcome == "unchecked"


def test_outside_a_checkout_nothing_can_be_checked(tmp_path):
    assert "no git checkout" in commit_check("0" * 40, tmp_path).detail

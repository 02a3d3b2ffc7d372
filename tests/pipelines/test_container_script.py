"""The script that starts a step's container again."""

import subprocess
from pathlib import Path

import pytest

from pipelines.container_script import write_script

COMMAND = ["sh", "-c", "echo 'two  words' \"$0\"", "--executor_input", '{"a": "it\'s"}']
VOLUMES = {"/data/my runs": {"bind": "/data/my runs", "mode": "rw"}}
OPTIONS = {
    "environment": {"EMUFLOW_RUN_ID": "7", "MLFLOW_TRACKING_URI": "https://user:hunter2@mlflow.example"},
    "tmpfs": {"/tmp": "mode=1777"},
    "user": "10001:10001",
    "network_mode": "none",
    "shm_size": "1g",
    "mem_limit": "90m",
    "read_only": True,
    "init": True,
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "containers" / "train.sh"
    write_script(path, "train", "sha256:abc", COMMAND, VOLUMES, OPTIONS)
    return path


def started(script: Path, tmp_path: Path, *arguments: str) -> list[str]:
    """The words with which the script calls its engine."""
    engine = tmp_path / "engine"
    engine.write_text('#!/bin/sh\nfor word; do printf "%s\\n" "$word"; done\n')
    engine.chmod(0o755)
    call = subprocess.run(
        [str(script), *arguments],
        env={"ENGINE": str(engine)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    return call.stdout.decode().splitlines()


def test_it_repeats_the_step_as_it_was_started(script, tmp_path):
    words = started(script, tmp_path)
    assert words[-len(COMMAND) - 1 :] == ["sha256:abc", *COMMAND]
    wanted = {"--volume=/data/my runs:/data/my runs:rw", "--tmpfs=/tmp:mode=1777", "--user=10001:10001"}
    wanted |= {"--network=none", "--shm-size=1g", "--memory=90m", "--read-only", "--init", "EMUFLOW_RUN_ID=7"}
    assert wanted <= set(words)


def test_it_runs_something_else_instead(script, tmp_path):
    assert started(script, tmp_path, "python", "-V")[-3:] == ["sha256:abc", "python", "-V"]


def test_fault_25_a_secret_is_passed_on_and_not_written(script, tmp_path):
    words = started(script, tmp_path)
    assert "hunter2" not in script.read_text()
    assert words[words.index("MLFLOW_TRACKING_URI") - 1] == "--env"

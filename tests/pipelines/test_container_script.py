"""The script that starts a step's container again."""

import subprocess
from pathlib import Path
from typing import Any, cast

import pytest
from docker import DockerClient

from pipelines.containers.script import write_script

COMMAND = ["sh", "-c", "echo 'two  words' \"$0\"", "--executor_input", '{"a": "it\'s"}']
VOLUMES = {"/data/my runs": {"bind": "/data/my runs", "mode": "rw"}}
OPTIONS = {
    "environment": {
        "EMUFLOW_RUN_ID": "7",
        "MLFLOW_TRACKING_URI": "https://user:hunter2@mlflow.example",
        "MLFLOW_TRACKING_PASSWORD": "hunter2",
        "MLFLOW_TRACKING_TOKEN": "hunter2",
    },
    "tmpfs": {"/tmp": "mode=1777"},
    "user": "10001:10001",
    "network_mode": "none",
    "shm_size": "1g",
    "mem_limit": "90m",
    "memswap_limit": "90m",
    "read_only": True,
    "init": True,
}


class Podman:
    """What podman says of itself; no engine is needed to write a script."""

    def version(self) -> dict[str, Any]:
        return {"Components": [{"Name": "Podman Engine"}]}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "containers" / "train.sh"
    write_script(path, "train", cast("DockerClient", Podman()), "sha256:abc", COMMAND, VOLUMES, OPTIONS)
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
    words = started(script, tmp_path, "--step")
    assert words[-len(COMMAND) - 1 :] == ["sha256:abc", *COMMAND]
    wanted = {"--volume=/data/my runs:/data/my runs:rw", "--tmpfs=/tmp:mode=1777", "--user=10001:10001"}
    wanted |= {
        "--network=none",
        "--shm-size=1g",
        "--memory=90m",
        "--memory-swap=90m",
        "--read-only",
        "--init",
        "--env=EMUFLOW_RUN_ID=7",
    }
    assert wanted <= set(words)


def test_it_opens_a_shell_and_runs_something_else_instead(script, tmp_path):
    assert started(script, tmp_path)[-2:] == ["sha256:abc", "sh"]
    assert started(script, tmp_path, "python", "-V")[-3:] == ["sha256:abc", "python", "-V"]


def test_fault_25_a_secret_is_passed_on_and_not_written(script, tmp_path):
    assert "hunter2" not in script.read_text() and script.stat().st_mode & 0o077 == 0
    wanted = {"--env=MLFLOW_TRACKING_URI", "--env=MLFLOW_TRACKING_PASSWORD", "--env=MLFLOW_TRACKING_TOKEN"}
    assert wanted <= set(started(script, tmp_path))


def test_it_asks_the_engine_that_ran_the_step(script):
    assert "engine=${ENGINE:-podman}" in script.read_text()

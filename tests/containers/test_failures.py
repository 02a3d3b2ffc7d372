"""What happens when a step fails in its container, is killed for memory, or the run is interrupted."""

import re
import signal
from pathlib import Path

import pytest

from pipelines.containers.engine import HOME_LABEL, remove_containers
from pipelines.containers.step import read_end, run_step
from pipelines.steps import STEPS
from tests.containers.conftest import IMAGES, IN_CONTAINERS, containers_of_runs, output
from tests.pipelines.chain import Chain, end, wait_until

pytestmark = pytest.mark.containers


@pytest.fixture
def chain(engine, tmp_path: Path) -> Chain:
    return Chain(tmp_path / "runs")


def succeeded(chain: Chain) -> set[str]:
    return {name for name in STEPS if chain.step(name).get("status") == "succeeded"}


def test_a_step_with_a_wrong_argument_fails_the_run_by_its_name(engine, chain, tmp_path):
    said = chain.call(*IN_CONTAINERS, "--set", f"data.source={tmp_path / 'nothing'}", code=1)
    assert "step ingest" in said and str(tmp_path / "nothing") in said
    shown, log = said.splitlines(), (chain.run_folder() / "logs" / "ingest.log").read_text().splitlines()
    assert [line for line in log[-30:] if line.strip() and line not in shown] == []
    assert chain.status()["last_run"]["status"] == "failed" and succeeded(chain) == set()
    assert containers_of_runs(engine) == []


def test_a_step_whose_container_cannot_be_started_fails_the_run_by_its_name(engine, chain):
    said = chain.call(*IN_CONTAINERS, "--set", "platform.containers.network=no-such-network", code=1)
    assert "step ingest: its container could not be run" in said and "no-such-network" in said
    assert succeeded(chain) == set()
    assert chain.status()["last_run"]["status"] == "failed"
    assert containers_of_runs(engine) == []


def test_a_step_that_is_killed_for_memory_fails_the_run_by_its_name(engine, chain):
    said = chain.call(*IN_CONTAINERS, "--set", "platform.containers.memory=90m", code=1)
    assert "step ingest" in said and "for memory (limit: 90m)" in said
    assert chain.status()["last_run"]["status"] == "failed" and succeeded(chain) == set()
    ended = read_end(chain.run_folder())
    assert ended is not None and (ended.step, ended.exit_code) == ("ingest", 137)
    assert containers_of_runs(engine) == []

    process = chain.start("run", "--resume", "--set", "platform.containers.memory=2g")
    wait_until(lambda: chain.step("validate").get("status") == "succeeded", process)
    end(process, signal.SIGTERM)
    assert process.returncode == 143 and containers_of_runs(engine) == []
    assert chain.status()["last_run"]["settings"]["platform"]["containers"]["memory"] == "2g"


def test_a_step_sees_that_one_of_its_processes_was_killed_for_memory(engine):
    """A rank of a training, say: the step itself lives on and tells."""
    code = (
        "import subprocess, sys; from common.processes import memory_kills;"
        "done = subprocess.run([sys.executable, '-c', 'bytearray(300 << 20)']); print(done.returncode, memory_kills())"
    )
    options = {"mem_limit": "60m", "memswap_limit": "60m", "network_mode": "none"}
    assert output(engine, IMAGES["emuflow"], ["python", "-c", code], **options).split() == ["-9", "1"]


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_container_that_ends_at_once_is_never_taken_for_another_result(engine, tmp_path, exit_code):
    """kfp's own function lets the engine remove the container, and then takes what it can no longer ask for as 0."""
    (tmp_path / "logs").mkdir()
    executor_input = '{"outputs": {"outputFile": "/artifacts/run/validate-2/executor_output.json"}}'
    command = ["sh", "-c", f"exit {exit_code}", "--executor_input", executor_input]
    for _ in range(10):
        assert run_step(engine, IMAGES["emuflow"], command, {}, run_folder=tmp_path, mounts={}) == exit_code
    ended = read_end(tmp_path)
    assert ended is not None and (ended.step, ended.exit_code) == ("validate-curated", exit_code)


def test_a_container_that_a_killed_run_left_is_ended_before_the_next_one(engine, tmp_path):
    """Driver and orchestrator killed at once cannot end it any more; the next run of the same home does."""
    home, other = tmp_path / "runs", tmp_path / "others"
    for folder in (home, other):
        labels = {"emuflow.run": "killed", HOME_LABEL: str(folder)}
        engine.containers.run(IMAGES["emuflow"], ["sleep", "600"], detach=True, labels=labels, network_mode="none")
    remove_containers(home)
    left = containers_of_runs(engine)
    remove_containers(other)
    assert [container.labels[HOME_LABEL] for container in left] == [str(other)]
    assert containers_of_runs(engine) == []


def test_an_image_of_other_code_is_refused(engine, chain):
    """The graph of this checkout, steps of another: nobody could say afterwards what made the package."""
    changed = engine.containers.create(IMAGES["emuflow"], ["sh", "-c", "echo '#' >> pipelines/cli.py"], user="0")
    try:
        changed.start()
        changed.wait()
        changed.commit("localhost/emuflow-changed", "1")
    finally:
        changed.remove(force=True)
    try:
        said = chain.call(*IN_CONTAINERS, "--set", "platform.containers.image=localhost/emuflow-changed:1", code=1)
    finally:
        engine.images.remove("localhost/emuflow-changed:1", force=True)
    assert "platform.containers.image: localhost/emuflow-changed:1" in said and "make images" in said
    assert not (chain.home / "pipeline").exists() or not list(chain.home.glob("pipeline/*/steps"))


def test_fault_27_an_interrupted_run_leaves_no_container_and_can_be_resumed(engine, chain):
    process = chain.start(*IN_CONTAINERS)
    wait_until(lambda: list(chain.home.glob("pipeline/*/steps")), process)
    wait_until(lambda: chain.progress("train") >= 12, process)
    assert len(containers_of_runs(engine)) == 1
    said = end(process, signal.SIGINT)
    assert process.returncode == 130 and "--resume" in said
    assert containers_of_runs(engine) == []
    before = {name: chain.step(name)["started"] for name in succeeded(chain)}
    assert {"ingest", "validate", "curate", "tokenize"} <= set(before) and "train" not in before

    process = chain.start("run", "--resume")
    wait_until(lambda: chain.step("train").get("status") == "succeeded", process)
    end(process, signal.SIGINT)
    assert containers_of_runs(engine) == []
    assert {name: chain.step(name)["started"] for name in before} == before
    log = (chain.run_folder() / "logs" / "train.log").read_text()
    starts = {int(first) for first in re.findall(r"trains steps (\d+) to 30", log)}
    assert starts in ({1, 11}, {1, 21}), "the resumed training begins at its newest saved state"

"""The graph as Kubeflow Pipelines' intermediate representation."""

import json
from pathlib import Path

import pytest
import yaml
from kfp.components import load_component_from_file
from typer.testing import CliRunner

from pipelines.cli import app
from pipelines.settings import load
from pipelines.steps import STEPS

IMAGE = "registry.example/emuflow@sha256:" + "a" * 64
NEVER_CACHED = {"ingest", "benchmark", "gate", "promote"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The IR that `emuflow compile` writes, in a process of its own: the image is settled at import."""
    import subprocess
    import sys

    output = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    command = [sys.executable, "-m", "pipelines.cli", "compile", "--preset", "smoke", "--image", IMAGE, "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return output


def read(compiled: Path) -> dict:
    return yaml.safe_load(compiled.read_text())


def test_kfp_reads_it_again(compiled):
    assert load_component_from_file(str(compiled)).name == "emuflow-retrain"


def test_its_tasks_are_the_steps(compiled):
    tasks = read(compiled)["root"]["dag"]["tasks"]
    names = [name.replace("validate-2", "validate-curated") for name in tasks]
    assert sorted(names) == sorted(STEPS)


def test_every_executor_runs_in_the_named_image_and_installs_nothing(compiled):
    executors = read(compiled)["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {IMAGE}
    assert not [executor for executor in executors if "pip install" in json.dumps(executor["container"])]


def test_what_measures_decides_or_reads_the_source_is_never_cached(compiled):
    tasks = read(compiled)["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert cached == set(tasks) - NEVER_CACHED


def test_the_settings_are_the_parameters_defaults(compiled):
    parameters = read(compiled)["root"]["inputDefinitions"]["parameters"]
    settings = json.loads(parameters["training_settings"]["defaultValue"])
    assert settings == json.loads(load("smoke").training.model_dump_json())


def test_each_step_receives_only_its_own_sections(compiled):
    tasks = read(compiled)["root"]["dag"]["tasks"]
    received = {
        name: {
            value["componentInputParameter"]
            for value in task["inputs"].get("parameters", {}).values()
            if value.get("componentInputParameter", "").endswith("_settings")
        }
        for name, task in tasks.items()
    }
    assert received["train"] == {"training_settings", "model_settings"}
    assert received["export"] == {"export_settings", "decoding_settings"}
    assert received["gate"] == {"gate_settings"}


def test_the_champion_is_an_input_of_the_benchmark(compiled):
    inputs = read(compiled)["root"]["dag"]["tasks"]["benchmark"]["inputs"]["parameters"]
    assert inputs["champion"] == {"componentInputParameter": "champion"}


@pytest.mark.parametrize("arguments", [["compile"], ["run", "--preset", "smoke", "--unknown"], ["no-such-command"]])
def test_a_wrong_command_line_ends_with_exit_code_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2

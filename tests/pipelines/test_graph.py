"""The graph as Kubeflow Pipelines' intermediate representation."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kfp.components import load_component_from_file
from typer.testing import CliRunner

from common.errors import SettingsError
from pipelines.cli import app
from pipelines.settings import load
from pipelines.steps import MEASURING_STEPS, STEPS, step_of_task, steps_of

IMAGE = "registry.example/emuflow@sha256:" + "a" * 64
TRITON_IMAGE = "registry.example/emuflow-triton@sha256:" + "b" * 64
NEEDS_A_SERVER = {"exec-export", "exec-benchmark"}
NEVER_CACHED = {"ingest", "benchmark", "gate", "promote"}


def compile_in_a_process(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`emuflow compile` in a process of its own: the images are settled when the components are imported."""
    command = [sys.executable, "-m", "pipelines.cli", "compile", "--preset", "smoke", *arguments, "-o", str(output)]
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("EMUFLOW_")}
    return subprocess.run(command, env=surroundings, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    done = compile_in_a_process(output, "--image", IMAGE, "--triton-image", TRITON_IMAGE)
    assert done.returncode == 0, done.stderr
    return output


def read(compiled: Path) -> dict:
    return yaml.safe_load(compiled.read_text())


def test_kfp_reads_it_again(compiled):
    assert load_component_from_file(str(compiled)).name == "emuflow-retrain"


def test_its_tasks_are_the_steps(compiled):
    tasks = read(compiled)["root"]["dag"]["tasks"]
    assert sorted(step_of_task(name) for name in tasks) == sorted(STEPS)


def test_the_step_adapt_is_in_the_graph_where_it_is_switched_on(tmp_path):
    overrides = ("--set", "adaptation.enabled=true", "--set", "training.objective=next_token")
    output = tmp_path / "pipeline.yaml"
    done = compile_in_a_process(output, "--image", IMAGE, "--triton-image", TRITON_IMAGE, *overrides)
    assert done.returncode == 0, done.stderr
    tasks = read(output)["root"]["dag"]["tasks"]
    expected = steps_of({"adaptation": {"enabled": True}})
    assert sorted(step_of_task(name) for name in tasks) == sorted(expected) and len(expected) == len(STEPS) + 1
    assert tasks["adapt"]["dependentTasks"] == ["tokenize", "train"]
    assert "adapt" in tasks["calibrate"]["dependentTasks"] and "train" not in tasks["calibrate"]["dependentTasks"]


def test_the_graph_that_measures_again_asks_for_what_the_other_run_left(tmp_path):
    output = tmp_path / "measure.yaml"
    done = compile_in_a_process(
        output, "--image", IMAGE, "--triton-image", TRITON_IMAGE, "--measure", "--set", "gate.confidence=0.9"
    )
    assert done.returncode == 0, done.stderr
    root = read(output)["root"]
    imported = {name: task for name, task in root["dag"]["tasks"].items() if name.startswith("importer")}
    assert set(root["dag"]["tasks"]) - set(imported) == set(MEASURING_STEPS) and len(imported) == 4
    parameters = root["inputDefinitions"]["parameters"]
    to_give = {name for name, each in parameters.items() if "defaultValue" not in each and not each.get("isOptional")}
    assert to_give == {"exported", "evaluation_set", "tokenizers", "trained_judge"}
    assert json.loads(parameters["gate_settings"]["defaultValue"])["confidence"] == 0.9
    assert "provenance" not in parameters and "training_settings" not in parameters


@pytest.mark.parametrize("override", ["adaptation.enabled=true", "training.objective=next_token"])
def test_next_tokens_and_their_adaptation_go_together(override):
    with pytest.raises(SettingsError, match="go together"):
        load("smoke", [override])


def test_every_step_runs_in_its_image_and_installs_nothing(compiled):
    executors = read(compiled)["deploymentSpec"]["executors"]
    images = {name: executor["container"]["image"] for name, executor in executors.items()}
    assert {name for name, image in images.items() if image == TRITON_IMAGE} == NEEDS_A_SERVER
    assert {image for name, image in images.items() if name not in NEEDS_A_SERVER} == {IMAGE}
    assert not [executor for executor in executors.values() if "pip install" in json.dumps(executor["container"])]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--image", IMAGE), "--triton-image"),
        (("--image", "registry.example/emuflow:1.0", "--triton-image", TRITON_IMAGE), "emuflow:1.0"),
        (("--image", IMAGE[:-1], "--triton-image", TRITON_IMAGE), "--image"),
    ],
)
def test_an_image_that_is_not_named_by_its_digest_is_refused(tmp_path, arguments, named):
    done = compile_in_a_process(tmp_path / "pipeline.yaml", *arguments)
    assert done.returncode == 2 and named in done.stderr and "--allow-tags" in done.stderr
    assert not (tmp_path / "pipeline.yaml").exists()


def test_a_tag_is_taken_where_that_is_asked_for(tmp_path):
    tags = ("--image", "emuflow:1", "--triton-image", "emuflow-triton:1", "--allow-tags")
    done = compile_in_a_process(tmp_path / "pipeline.yaml", *tags)
    assert done.returncode == 0, done.stderr
    executors = read(tmp_path / "pipeline.yaml")["deploymentSpec"]["executors"]
    assert {each["container"]["image"] for each in executors.values()} == {"emuflow:1", "emuflow-triton:1"}


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
    assert received["train"] == {"training_settings", "model_settings", "launcher_settings"}
    assert received["export"] == {"export_settings", "decoding_settings"}
    assert received["gate"] == {"gate_settings"}


def test_the_champion_is_an_input_of_the_benchmark(compiled):
    inputs = read(compiled)["root"]["dag"]["tasks"]["benchmark"]["inputs"]["parameters"]
    assert inputs["champion"] == {"componentInputParameter": "champion"}


@pytest.mark.parametrize("arguments", [["compile"], ["run", "--preset", "smoke", "--unknown"], ["no-such-command"]])
def test_a_wrong_command_line_ends_with_exit_code_2(arguments):
    assert CliRunner().invoke(app, arguments).exit_code == 2

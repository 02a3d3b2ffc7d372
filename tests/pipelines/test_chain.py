"""The whole chain through the command line: a first run, and a second one that is killed, interrupted and resumed.

Both are real: DeepSpeed ranks, a Triton server, an MLflow store. The tests read what the two runs left.
"""

import json
import re
import signal
from pathlib import Path

import numpy as np
from mlflow import MlflowClient
from PIL import Image

from pipelines.steps import STEPS
from tests.pipelines.chain import descendants, end, still_alive, wait_until


def test_the_first_run_ends_with_a_promoted_champion(first):
    run = first.status["last_run"]
    assert run["status"] == "succeeded"
    assert run["verdict"]["result"] == "PASS"
    assert first.status["champion"]["digest"] == run["candidate"] == run["champion"]["after"]
    assert run["champion"]["before"] is None
    assert (first.chain.home / "packages" / run["candidate"] / "manifest.sig").is_file()


def test_the_status_tells_the_times_the_memory_the_checks_and_the_paths(first):
    run = first.status["last_run"]
    assert set(STEPS) <= set(run["seconds"]) and run["seconds"]["total"] >= run["seconds"]["train"] > 0
    assert 200 < run["peak_memory_mb"] < 6144
    names = {check["name"] for check in run["verdict"]["checks"]}
    assert {"accuracy_int8", "accuracy_loss_int8", "block_bytes_ratio", "image_p95_ms"} <= names
    assert all({"name", "value", "bound", "ok", "n"} <= set(check) for check in run["verdict"]["checks"])
    assert all(Path(path).exists() for path in run["paths"].values())


def test_the_terminal_shows_the_steps_the_verdict_and_where_the_report_lies(first):
    for step in STEPS:
        assert f"{step}: succeeded" in first.output
    assert "Verdict: PASS" in first.output and "report.html" in first.output
    assert all((first.folder / "logs" / f"{step}.log").is_file() for step in STEPS)


def test_each_step_left_its_artifact_under_a_short_name(first):
    for name in ("samples", "evaluation_set", "curated", "tokenizers", "shards", "checkpoint", "engine", "exported"):
        assert (first.folder / name).is_dir(), name
    quarantine = json.loads((first.folder / "samples" / "summary.json").read_text())["quarantined"]
    assert sum(quarantine.values()) > 0


def test_mlflow_holds_one_run_with_a_nested_one_for_each_step(first, second):
    client = MlflowClient(f"sqlite:///{first.chain.home / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("emuflow")
    assert experiment is not None
    for status in (first.status, second.status):
        run = status["last_run"]
        tag = f"tags.`kfp.pipeline_run_id` = '{run['run_id']}'"
        found = client.search_runs([experiment.experiment_id], filter_string=tag)
        parents = [each for each in found if "mlflow.parentRunId" not in each.data.tags]
        assert len(parents) == 1
        nested = [each for each in found if each.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
        assert sorted(each.data.tags["emuflow.step"] for each in nested) == sorted(STEPS)
        assert {each.info.status for each in found} == {"FINISHED"}
        tags = parents[0].data.tags
        assert tags["emuflow.verdict"] == run["verdict"]["result"]
        assert tags["emuflow.parent_champion"] == (run["champion"]["before"] or "none")
        assert len(tags["emuflow.data_digest"]) == 64
        assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", tags["emuflow.git_commit"])
        assert {"kfp.pipeline_run_id", "kfp.pipeline_run_url", "kfp.pipeline_id", "kfp.pipeline_version_id"} <= set(
            tags
        )
        assert parents[0].data.params["training.steps"] == "30"
        training = next(each for each in nested if each.data.tags["emuflow.step"] == "train")
        curve = client.get_metric_history(training.info.run_id, "train/coarse_loss")
        assert len(curve) > 3


def test_what_failed_is_registered_too_with_its_reasons(first, second):
    client = MlflowClient(f"sqlite:///{first.chain.home / 'mlflow' / 'mlflow.db'}")
    versions = client.search_model_versions("name = 'emuflow-generator'")
    by_digest = {version.tags["package_digest"]: version for version in versions}
    rejected = by_digest[second.status["last_run"]["candidate"]]
    assert rejected.tags["verdict"] == "FAIL" and "accuracy_int8" in rejected.tags["reasons"]
    champion = client.get_model_version_by_alias("emuflow-generator", "champion")
    assert champion.tags["package_digest"] == first.status["champion"]["digest"]


def test_fault_07_a_killed_rank_fails_the_run_and_names_the_step(second):
    assert "step train" in second.killed_output
    assert "--resume" in second.killed_output


def test_a_resumed_run_repeats_no_complete_step(second):
    assert {"ingest", "validate", "curate", "tokenize", "train", "calibrate", "export"} <= set(second.completed_before)
    for name, started in second.completed_before.items():
        assert json.loads((second.folder / "steps" / f"{name}.json").read_text())["started"] == started, name
    log = (second.folder / "logs" / "train.log").read_text()
    starts = {int(first) for first in re.findall(r"trains steps (\d+) to 30", log)}
    assert starts in ({1, 11}, {1, 21}, {1, 11, 21})  # each start begins at the newest state that was saved


def test_fault_27_a_terminated_run_leaves_no_rank(second):
    assert second.terminated_code == 143
    assert second.left_training == []


def test_fault_27_an_interrupted_run_leaves_no_process_and_no_port(second):
    assert second.interrupted_code == 130
    assert "SIGINT" in second.interrupted_output and "--resume" in second.interrupted_output
    assert second.server_pids and second.ports
    assert second.left_behind == []
    assert second.open_ports == []


def test_the_second_run_is_measured_against_the_champion_and_fails(first, second):
    run = second.status["last_run"]
    assert run["status"] == "succeeded" and run["verdict"]["result"] == "FAIL"
    assert run["champion"] == {"before": first.status["champion"]["digest"]} | {
        "after": first.status["champion"]["digest"]
    }
    checks = {check["name"]: check for check in run["verdict"]["checks"]}
    assert checks["accuracy_int8"]["result"] == "FAIL"
    assert {"accuracy_vs_champion", "p50_ratio_vs_champion", "p95_ratio_vs_champion"} <= set(checks)
    assert checks["p95_ratio_vs_champion"]["interval"]
    assert second.status["champion"] == first.status["champion"]


def test_another_policy_is_tried_on_what_was_measured_and_changes_nothing(first, second, tmp_path):
    verdict = (second.folder / "verdict" / "verdict.json").read_bytes()
    assert json.loads(first.chain.call("gate", "--json"))["result"] == "FAIL"
    said = first.chain.call("gate", "--set", "gate.absolute.min_accuracy=0", "--report", str(tmp_path / "tried"))
    assert "Verdict: PASS" in said and "every bound is kept" in said
    assert "<svg" in (tmp_path / "tried" / "report.html").read_text()
    said = first.chain.call("gate", first.folder.name, "--set", "gate.absolute.max_image_p95_ms=0.001")
    assert "Verdict: FAIL" in said and "image_p95_ms: " in said
    assert "not of the section gate" in first.chain.call("gate", "--set", "training.steps=1", code=2)
    assert "no run 'nothing'" in first.chain.call("gate", "nothing", code=2)
    assert (second.folder / "verdict" / "verdict.json").read_bytes() == verdict
    assert first.chain.status()["champion"] == second.status["champion"]


def test_a_retraining_keeps_the_tokenizers_and_the_evaluation_set(first, second):
    for name in ("tokenizers/tokenizers.json", "evaluation_set/evaluation.json", "evaluation_set/samples.parquet"):
        assert (second.folder / name).read_bytes() == (first.folder / name).read_bytes()
    shards = [(folder / "shards" / "train.bin").read_bytes() for folder in (first.folder, second.folder)]
    assert shards[0] != shards[1]


def test_the_history_shows_both_runs(first, second):
    found = first.chain.history()
    assert [run["verdict"] for run in found["runs"]] == ["FAIL", "PASS"]
    assert [(run["version"], run["stage"]) for run in found["runs"]] == [("2", "candidate"), ("1", "champion")]
    assert [release["digest"] for release in found["champions"]] == [first.status["champion"]["digest"]]
    assert "FAIL" in first.chain.call("history")


def test_a_run_that_is_complete_cannot_be_resumed(second, first):
    assert "nothing to resume" in first.chain.call("run", "--resume", code=2)


def test_the_champion_is_served_and_asked(first, second, tmp_path):
    chain, output, answer = first.chain, tmp_path / "out.png", tmp_path / "out.json"
    ports = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")
    server = chain.start("serve", *ports)
    try:
        wait_until(lambda: (chain.status()["serving"] or {}).get("digest"), server, 60)
        assert chain.status()["serving"]["digest"] == first.status["champion"]["digest"]
        prompt = "a red seven left of a green two"
        said = chain.call("generate", prompt, "-o", str(output), "--seed", "5")
        assert first.status["champion"]["digest"][:12] in said
        drawn = np.asarray(Image.open(output))
        assert drawn.shape == (64, 64, 3)
        chain.call("generate", prompt, "-o", str(output), "--seed", "5")
        assert (np.asarray(Image.open(output)) == drawn).all()
        chain.call("generate", prompt, "-o", str(output), "--seed", "6", "--json", str(answer))
        assert (np.asarray(Image.open(output)) != drawn).any()
        assert "prompt" in chain.call("generate", "", "-o", str(output), code=2)
        children = descendants(server)
    finally:
        said = end(server, signal.SIGINT)
    assert server.returncode == 0 and "The server has ended" in said
    assert children and not still_alive(children)
    lineage = chain.call("lineage", str(answer), "--replay")
    assert "drawn again, the 64x64 pixels are the same" in lineage and "image file" in lineage
    assert first.status["champion"]["digest"][:12] in lineage and first.folder.name in lineage
    assert "no server runs" in chain.call("generate", "x", "-o", str(output), code=2)

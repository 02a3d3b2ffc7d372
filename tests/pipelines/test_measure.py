"""`emuflow measure` on a copy of the home of the two real runs, where the first run's package is the champion."""

import io
import json
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from rich.console import Console

from common.errors import DigestMismatchError, EmuflowError, SettingsError, SignatureError, UsageError
from common.home import Home
from components.step import RELEASE_URL_VARIABLE
from pipelines import measure as graph
from pipelines import retrain
from pipelines.connection import TRACKING_VARIABLE
from pipelines.lineage.collect import trace
from pipelines.lineage.sources import read_sources
from pipelines.local import resume
from pipelines.lock import only_run
from pipelines.measuring import measure
from pipelines.record import RunRecord, resumable_run
from pipelines.steps import MEASURING_STEPS
from serving.release.store import ReleaseStore
from tests.pipelines.chain import Chain, descendants, end, still_alive, wait_until

LITTLE = (
    "benchmark.latency.min_rounds=2",
    "benchmark.latency.max_rounds=2",
    "benchmark.latency.full_rounds=2",
    "benchmark.open_load.chunks=0",
    "benchmark.frechet_resamples=20",
    "gate.absolute.min_accuracy=0",
    "gate.absolute.max_open_load_error_share=null",
    "gate.min_latency_rounds=2",
    "gate.min_latency_samples=20",
    "gate.min_previews=10",
)
QUICKLY = [word for override in LITTLE for word in ("--set", override)]


@dataclass(frozen=True)
class Measured:
    """What was seen: another champion came, so that the first run's package was refused; it was then measured again, at first
    interrupted."""

    chain: Chain
    first: str
    second: str
    verdict_before: bytes
    refused: str
    interrupted: str
    left_behind: list[int]
    output: str

    @property
    def home(self) -> Home:
        return Home(self.chain.home)

    def runs(self, package: str) -> list[dict[str, Any]]:
        """The records of the measurements of a package, the oldest first."""
        files = sorted(self.chain.home.glob("pipeline/*/run.json"))
        return [record for file in files if (record := json.loads(file.read_text())).get("measures") == package]


def copy_of(source: Path, target: Path) -> Chain:
    """A home whose MLflow keeps its files there, too."""
    ignored = shutil.ignore_patterns("great_expectations", "work", "cache", "serving")
    shutil.copytree(source, target, symlinks=True, ignore=ignored)
    with sqlite3.connect(target / "mlflow" / "mlflow.db") as database:
        database.execute("UPDATE experiments SET artifact_location = ?", (Home(target).mlflow_artifacts.as_uri(),))
    return Chain(target)


@pytest.fixture(scope="module")
def copied(first, second, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return copy_of(first.chain.home, tmp_path_factory.mktemp("measure") / "runs")


@pytest.fixture(scope="module")
def measured(first, second, copied) -> Measured:
    chain, earlier, candidate = copied, first.status["champion"]["digest"], second.status["last_run"]["candidate"]
    before = (Home(chain.home).run(first.folder.name) / "verdict" / "verdict.json").read_bytes()
    store = ReleaseStore(Home(chain.home).release_url, Home(chain.home).keys)
    store.promote(
        "champion", candidate, expected_current=earlier, evidence_digest="e" * 64, actor="tester", reason="a better one"
    )
    store.close()
    refused = chain.call("promote", "1", "--to", "champion", code=1)
    process = chain.start("measure", earlier[:8], *QUICKLY)
    wait_until(lambda: chain.run_folder().name > second.folder.name and chain.progress("benchmark") >= 1, process)
    everything = descendants(process)
    interrupted = end(process, signal.SIGINT)
    left = [child.pid for child in still_alive(everything)]
    output = chain.call("measure", earlier[:8], *QUICKLY)
    return Measured(chain, earlier, candidate, before, refused, interrupted, left, output)


def test_a_champion_that_changed_is_what_the_refusal_says_to_measure_against(measured):
    assert f"against the new champion: emuflow measure {measured.first[:12]}" in measured.refused


def test_measured_again_it_is_promoted_on_the_new_evidence(measured, first):
    assert "Verdict: PASS" in measured.output and f"Promoted: {measured.first[:12]} is the champion." in measured.output
    record = measured.runs(measured.first)[-1]
    assert record["verdict"]["champion_digest"] == measured.second
    assert record["champion"] == {"before": measured.second, "after": measured.first}
    assert record["settings"]["gate"]["min_previews"] == 10
    assert record["settings"]["gate"]["earlier_measurements"] == 0  # the first one had no champion
    made = first.status["last_run"]["settings"]
    assert record["settings"]["promotion"] == made["promotion"]  # what was not overridden is its own run's
    champions = measured.chain.history()["champions"]
    assert [row["digest"] for row in champions] == [measured.first, measured.second, measured.first]


def test_the_earlier_evidence_stays_and_nothing_is_taken_out_of_the_records(measured, first):
    verdict = measured.home.run(first.folder.name) / "verdict" / "verdict.json"
    assert verdict.read_bytes() == measured.verdict_before
    rows = [row for row in measured.chain.history()["releases"] if row["digest"] == measured.first]
    candidates = [row for row in rows if row["stage"] == "candidate"]
    assert [row["measured_against"] for row in candidates] == [measured.second, None]
    champions = [row for row in rows if row["stage"] == "champion"]
    evidence = [row["evidence_digest"] for row in candidates]
    assert [row["evidence_digest"] for row in champions] == evidence and len(set(evidence)) == 2
    client = MlflowClient(measured.home.tracking_uri)
    against = [client.get_model_version("emuflow-generator", each).tags["measured_against"] for each in ("1", "3")]
    assert against == ["none", measured.second]
    assert "The audit log is whole" in measured.chain.call("audit", "verify")


def test_an_interrupted_measurement_leaves_no_process_and_says_how_it_is_made_again(measured):
    assert f"`emuflow measure {measured.first[:12]}` measures it again" in measured.interrupted
    assert measured.left_behind == []
    assert [run["status"] for run in measured.runs(measured.first)] == ["interrupted", "succeeded"]


def test_mlflow_links_the_measurement_with_the_run_that_made_the_package(measured, first):
    client, record = MlflowClient(measured.home.tracking_uri), measured.runs(measured.first)[-1]
    run = client.get_run(record["tracking"]["parent"])
    made = client.get_run(run.data.tags["emuflow.package_mlflow_run"])
    assert run.info.status == "FINISHED" and run.data.tags["emuflow.verdict"] == "PASS"
    assert run.data.tags["emuflow.package_run"] == made.data.tags["kfp.pipeline_run_id"] == first.folder.name
    for tag in ("emuflow.data_digest", "emuflow.evaluation_digest"):
        assert run.data.tags[tag] == made.data.tags[tag]
    reports = [file.path for file in client.list_artifacts(run.info.run_id, "reports")]
    assert reports == ["reports/report.html", "reports/verdict.json"]
    assert set(record["tracking"]["steps"]) == set(MEASURING_STEPS)


def test_the_lineage_shows_each_measurement_and_leads_back_to_the_data(measured, stores, first):
    lineage = trace(read_sources(measured.home), measured.first)
    assert [check for check in lineage.checks() if check.outcome == "failed"] == []
    (manifest,) = lineage.packages[0].children
    made, again = [node for node in manifest.children if node.kind == "run"]
    assert made.name == first.folder.name and again.name == measured.runs(measured.first)[-1]["run_id"]
    verdicts = [node for node in lineage.packages[0].walk() if node.name == "verdict"]
    for verdict in verdicts:
        found = {check.name: check.outcome for check in verdict.checks}
        assert found["verdict in the release store"] == found["verdict in the registry"] == "ok"
    assert len(verdicts) == 2 and "curated" in {node.name for node in made.walk()}


def test_the_history_tells_measurements_from_runs(measured):
    assert [bool(run["measures"]) for run in measured.chain.history()["runs"]] == [True, True, False, False]
    assert "PASS, again" in measured.chain.call("history")


@pytest.mark.slow
def test_without_promotion_it_is_judged_and_registered_and_promoted_by_hand_afterwards(measured, tmp_path):
    chain = copy_of(measured.chain.home, tmp_path / "runs")
    told = " ".join(chain.call("measure", "2", *QUICKLY, "--no-promote").split())
    run = chain.status()["last_run"]
    assert (run["stage"], run["verdict"]["result"], run["candidate"]) == ("candidate", "PASS", measured.second)
    assert f"`emuflow promote {run['version']} --to champion` does that" in told
    assert chain.status()["champion"]["digest"] == measured.first
    chain.call("promote", measured.second[:8], "--to", "champion")  # its own run's verdict was a FAIL
    assert chain.status()["champion"]["digest"] == measured.second


@pytest.fixture
def stores(copied, monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy's own, which commands in this process put into the environment."""
    monkeypatch.setenv(TRACKING_VARIABLE, Home(copied.home).tracking_uri)
    monkeypatch.setenv(RELEASE_URL_VARIABLE, Home(copied.home).release_url)


def again(measured: Measured, version: str, *overrides: str) -> RunRecord:
    """What is refused leaves no folder of a run."""
    folders = set((measured.chain.home / "pipeline").iterdir())
    try:
        return measure(measured.home, version, overrides, console=Console(file=io.StringIO()))
    except EmuflowError:
        assert set((measured.chain.home / "pipeline").iterdir()) == folders
        raise


@contextmanager
def moved_away(path: Path) -> Iterator[None]:
    aside = path.parent.parent / f"aside-{path.name}"
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


@contextmanager
def altered(file: Path) -> Iterator[None]:
    before = file.read_bytes()
    try:
        file.write_bytes(before + b" ")
        yield
    finally:
        file.write_bytes(before)


def test_what_there_is_not_or_cannot_be_measured_is_wrong_use(measured, stores):
    for unknown in ("77", "abcdabcdabcd", "abc"):
        with pytest.raises(UsageError, match="see `emuflow history`"):
            again(measured, unknown)
    with pytest.raises(UsageError, match="is the champion already"):
        again(measured, measured.first)
    full = json.loads(
        (measured.home.run(measured.runs(measured.first)[0]["run_id"]) / "exported/export.json").read_text()
    )
    with pytest.raises(UsageError, match=f"(?s)full-precision form.*emuflow measure {measured.first[:12]}"):
        again(measured, full["fp32"])
    with pytest.raises(SettingsError, match=r"training\.steps"):
        again(measured, measured.second, "training.steps=3")
    with pytest.raises(UsageError, match="demands of a promotion: approval"):
        again(measured, measured.second, "promotion.approval=person")
    with pytest.raises(UsageError, match="demands of a promotion: canary_policy"):
        again(measured, measured.second, "promotion.canary_policy.error_margin=0.5")
    with pytest.raises(UsageError, match="counts the earlier ones itself"):
        again(measured, measured.second, "gate.earlier_measurements=1")
    with pytest.raises(SettingsError, match=r"gate\.min_accuracy"):
        again(measured, measured.second, "gate.min_accuracy=1")
    twin = measured.home.packages / f"{measured.second[:12]}{'0' * 52}"
    twin.mkdir()
    try:
        with pytest.raises(UsageError, match="2 packages match"):
            again(measured, measured.second[:12])
    finally:
        twin.rmdir()


@pytest.mark.parametrize("gone", ["evaluation_set", "tokenizers", "trained_judge", "exported", "settings.json"])
def test_what_the_run_left_and_is_gone_is_named(measured, stores, second, gone):
    with (
        moved_away(measured.home.run(second.folder.name) / gone),
        pytest.raises(UsageError, match=f"there is no {gone}") as refused,
    ):
        again(measured, measured.second)
    assert second.folder.name in str(refused.value) and refused.value.fix


def test_packages_that_are_gone_or_altered_are_not_measured(measured, stores, second):
    folder = measured.home.run(second.folder.name)
    full = json.loads((folder / "exported" / "export.json").read_text())["fp32"]
    for package in (measured.second, full, measured.first):
        with moved_away(measured.home.packages / package), pytest.raises(UsageError, match="put it back there"):
            again(measured, "2")
    for package in (measured.second, full):
        with altered(measured.home.packages / package / "config.pbtxt"), pytest.raises(SignatureError):
            again(measured, "2")
    with (
        altered(next((folder / "tokenizers").glob("*/*.json"))),
        pytest.raises(DigestMismatchError, match="tokenizers"),
    ):
        again(measured, "2")
    settings = folder / "settings.json"
    before = settings.read_text()
    try:
        settings.write_text(before.replace('"seeds_per_caption": 1', '"seeds_per_caption": 2'))
        with pytest.raises(DigestMismatchError, match="--set"):
            again(measured, "2")
    finally:
        settings.write_text(before)


def test_one_run_at_a_time_works_in_a_home(measured, stores):
    with only_run(measured.home), pytest.raises(UsageError, match="another run works in this folder"):
        again(measured, "2")


def test_without_promotion_it_is_only_to_be_registered(measured, stores, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipelines.measuring.execute", lambda record, *_: record)
    for promote, goal in ((False, "candidate"), (True, "champion")):
        record = measure(measured.home, "2", (), promote=promote, console=Console(file=io.StringIO()))
        arguments = json.loads((measured.home.run(record.run_id) / "arguments.json").read_text())
        assert json.loads(arguments["promotion_settings"])["to"] == goal


def test_verdicts_against_the_same_champion_are_counted_and_invalid_ones_are_not(
    measured, stores, monkeypatch: pytest.MonkeyPatch
):
    """The package of the second run had its verdict against the first one, the champion of now."""
    monkeypatch.setattr("pipelines.measuring.execute", lambda record, *_: record)
    store, counted = ReleaseStore(measured.home.release_url, measured.home.keys), []
    for number, reason in enumerate(("INVALID: not fit", "INCONCLUSIVE: noise", "FAIL: slower")):
        record = measure(measured.home, "2", (), console=Console(file=io.StringIO()))
        arguments = json.loads((measured.home.run(record.run_id) / "arguments.json").read_text())
        counted.append(json.loads(arguments["gate_settings"])["earlier_measurements"])
        store.register(
            measured.second, evidence_digest=str(number) * 64, measured_against=measured.first, actor="t", reason=reason
        )
    store.close()
    assert counted == [1, 1, 2]


def test_a_measurement_does_not_hide_a_run_that_can_be_resumed(tmp_path):
    home = Home(tmp_path)
    for run_id, status, measures in (("1", "succeeded", None), ("2", "failed", None), ("3", "interrupted", "a" * 64)):
        RunRecord(run_id, "smoke", {}, "", status=status, measures=measures).save(home)
    assert resumable_run(home).run_id == "2"


def test_a_run_whose_package_was_measured_since_is_not_resumed(tmp_path):
    """Its older verdict would undo what came of the newer one: a rejection, or a rollback."""
    home = Home(tmp_path)
    RunRecord("1", "smoke", {}, "", status="failed").save(home)
    exported = home.run("1") / "exported"
    exported.mkdir()
    (exported / "export.json").write_text(json.dumps({"int8": "a" * 64, "fp32": "b" * 64}))
    RunRecord("2", "smoke", {}, "", status="succeeded", measures="a" * 64).save(home)
    with pytest.raises(UsageError, match="measured again since, by run 2") as refused:
        resume(home, (), Console(file=io.StringIO()))
    assert refused.value.fix is not None and "emuflow measure aaaaaaaaaaaa" in refused.value.fix


def test_its_graph_is_the_end_of_the_other_one():
    tasks = graph.pipeline().pipeline_spec.root.dag.tasks
    assert {name for name in tasks if not name.startswith("importer")} == set(MEASURING_STEPS)
    assert not any(tasks[name].caching_options.enable_cache for name in MEASURING_STEPS)
    names = {RunRecord("1", "smoke", {}, "", measures=each).pipeline for each in (None, "a" * 64)}
    assert names == {graph.NAME, retrain.NAME}

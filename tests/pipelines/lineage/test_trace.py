"""A lineage over two real runs: what it shows, what it finds altered, and what it says where something is away."""

import contextlib
import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from common.errors import TrackingError, UsageError
from pipelines.cli import app
from pipelines.connection import TRACKING_VARIABLE
from pipelines.lineage.collect import trace
from pipelines.lineage.find import find_package
from pipelines.lineage.render import as_json
from pipelines.lineage.sources import Away, read_sources
from pipelines.steps import STEPS

RUN_FILES = {
    "settings.json": "run's settings",
    "samples/samples.parquet": "samples",
    "evaluation_set/samples.parquet": "evaluation set",
    "curated/samples.parquet": "curated table",
    "tokenizers/text/tokenizer.json": "tokenizers",
    "tokenizers/visual/model.safetensors": "tokenizers",
    "shards/train.bin": "shards' files",
    "shards/heldout.idx": "shards' files",
    "checkpoint/tokenizers/visual/model.safetensors": "checkpoint's tokenizers",
    "checkpoint/model.safetensors": "checkpoint's weights",
    "engine/int8/weights.bin": "engine's files",
    "engine/int8/draw.onnx": "engine's files",
    "engine/calibration.json": "engine's files",
    "trained_judge/judge.onnx": "judge",
    "measurements/measurements.json": "measurements",
    "verdict/verdict.json": "verdict",
}
RECORDS = {
    "run.json": ("settings", "run's record"),
    "samples/summary.json": ("table_sha256", "samples"),
    "curated/report.json": ("table_sha256", "curated table"),
    "validation_curated/result.json": ("table_sha256", "curated table"),
    "tokenizers/tokenizers.json": ("digest", "tokenizers"),
    "shards/shards.json": ("table_sha256", "shards' table"),
    "exported/export.json": ("int8", "exported package"),
    "steps/gate.json": ("result", "verdict"),
}
PACKAGE_FILES = ("manifest.json", "manifest.sig", "1/engine/weights.bin", "1/runtime/generator.py", "config.pbtxt")


def test_a_package_leads_back_through_its_run_to_the_first_of_its_lineage(place):
    lineage = place.lineage()
    assert [package.name for package in lineage.packages] == [place.child, place.parent]
    child, parent = lineage.packages
    assert child.facts["version"] == "2" and child.facts["parent"] == place.parent
    assert parent.facts["version"] == "1" and "first" in parent.facts["parent"] and "champion since" in parent.facts
    for package, run_id in ((child, place.child_run), (parent, place.parent_run)):
        (manifest,) = package.children
        (run,) = manifest.children
        assert (manifest.kind, run.kind, run.name) == ("manifest", "run", run_id)
        below = [node.name for node in run.children if node.kind == "step"]
        assert below == list(STEPS)
        assert {"settings", "code", "image"} <= {node.kind for node in run.children}
        assert {"samples", "evaluation_set", "curated", "tokenizers", "shards", "checkpoint", "engine", "verdict"} <= {
            node.name for node in run.walk() if node.kind == "artifact"
        }


def test_every_digest_of_an_untouched_lineage_is_as_it_was_written(place, outcomes):
    lineage = place.lineage()
    assert outcomes(lineage, "failed") == {}
    passed = set(outcomes(lineage, "ok"))
    assert set(RUN_FILES.values()) <= passed
    assert {
        "manifest digest",
        "package signature and files",
        "registry's tags",
        "run's record",
        "verdict's package",
        "verdict in the release store",
        "verdict in the registry",
    } <= passed
    assert set(outcomes(lineage, "unchecked")) <= {"verdict in the release store"}


@pytest.mark.parametrize("file", RUN_FILES)
def test_one_altered_byte_of_an_artifact_is_found_and_named(place, altered, outcomes, file):
    with altered(place.run() / file):
        failed = outcomes(place.lineage(), "failed")
    assert RUN_FILES[file] in failed, failed
    check = failed[RUN_FILES[file]]
    assert check.detail and check.expected and check.found and check.expected != check.found


@pytest.mark.parametrize("file", PACKAGE_FILES)
def test_fault_22_one_altered_byte_of_a_package_is_found(place, altered, outcomes, file):
    with altered(place.package() / file):
        failed = outcomes(place.lineage(), "failed")
    assert "package signature and files" in failed
    assert ("manifest digest" in failed) == (file == "manifest.json")


@pytest.mark.parametrize("file", RECORDS)
def test_a_record_that_says_something_else_is_found(place, outcomes, file):
    path, (key, name) = place.run() / file, RECORDS[file]
    before = path.read_text()
    content = json.loads(before)
    content[key] = {"evidence_digest": "0" * 64} if isinstance(content[key], dict) else "0" * 64
    try:
        path.write_text(json.dumps(content))
        failed = outcomes(place.lineage(), "failed")
    finally:
        path.write_text(before)
    assert name in failed


def test_a_record_that_is_no_json_any_more_does_not_count_as_agreement(place, outcomes):
    path = place.run() / "curated" / "report.json"
    before = path.read_text()
    try:
        path.write_text(before[:-3])
        failed = outcomes(place.lineage(), "failed")
    finally:
        path.write_text(before)
    assert "curated/report.json" in failed["run's files"].detail


def test_a_file_that_the_package_does_not_list_is_found(place, outcomes):
    foreign = place.package() / "1" / "extra.py"
    try:
        foreign.write_text("")
        failed = outcomes(place.lineage(), "failed")
    finally:
        foreign.unlink()
    assert "extra.py" in failed["package signature and files"].detail


def test_evidence_that_the_stores_name_otherwise_is_found(place, outcomes):
    sources = place.sources()
    assert not isinstance(sources.releases, Away) and not isinstance(sources.versions, Away)
    releases = tuple(replace(row, evidence_digest="0" * 64) for row in sources.releases)
    failed = outcomes(trace(replace(sources, releases=releases), place.parent), "failed")
    assert failed["verdict in the release store"].expected == "0" * 64
    versions = tuple(replace(each, tags={**each.tags, "evidence_digest": "1" * 64}) for each in sources.versions)
    failed = outcomes(trace(replace(sources, versions=versions), place.parent), "failed")
    assert failed["verdict in the registry"].expected == "1" * 64
    versions = tuple(replace(each, tags={**each.tags, "data_digest": "2" * 64}) for each in sources.versions)
    assert "registry's tags: data_digest" in outcomes(
        trace(replace(sources, versions=versions), place.parent), "failed"
    )


def test_fault_21_without_mlflow_the_files_alone_give_the_tree(place, monkeypatch, outcomes):
    with_mlflow = place.lineage()
    monkeypatch.setenv(TRACKING_VARIABLE, "http://somebody:hunter2@127.0.0.1:1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sources = read_sources(place.home)
    assert isinstance(sources.versions, Away)
    lineage = trace(sources, "2")
    assert [node.name for node in lineage.nodes()] == [node.name for node in with_mlflow.nodes()]
    assert outcomes(lineage, "failed") == {}
    away = outcomes(lineage, "unchecked")
    assert {"registry's tags", "verdict in the registry"} <= set(away)
    assert "does not answer" in away["registry's tags"].detail
    assert "hunter2" not in as_json(lineage)  # fault 25


def test_without_the_release_store_the_champion_cannot_be_named(place, outcomes):
    sources = replace(place.sources(), releases=Away("it is away"))
    with pytest.raises(TrackingError, match=r"it is away(.|\n)*version 2"):
        find_package(sources, "champion")
    assert "it is away" in outcomes(trace(sources, "2"), "unchecked")["verdict in the release store"].detail


def test_what_is_gone_is_said_and_the_lineage_goes_on(place, outcomes):
    with _moved(place.home.packages / place.child), _moved(place.run() / "curated"):
        lineage = trace(place.sources(), place.child)
        assert [package.name for package in lineage.packages] == [place.child, place.parent]
        away = outcomes(lineage, "unchecked")
    assert {"package signature and files", "manifest digest", "curated table"} <= set(away)
    assert outcomes(lineage, "failed") == {}
    with _moved(place.run()):
        lineage = trace(place.sources(), place.child)
    assert [package.name for package in lineage.packages] == [place.child, place.parent]
    assert "gone" in outcomes(lineage, "unchecked")["run"].detail


@contextlib.contextmanager
def _moved(path):
    aside = path.with_name(f".{path.name}.aside")
    path.rename(aside)
    try:
        yield
    finally:
        aside.rename(path)


def test_a_package_is_named_by_version_digest_or_stage(place):
    sources = place.sources()
    assert find_package(sources, "2") == find_package(sources, place.child[:8]) == place.child
    assert find_package(sources, "champion") == find_package(sources, place.parent) == place.parent


@pytest.mark.parametrize("wanted", ["99", "deadbeef", "abc", "../run", "latest"])
def test_an_unknown_version_is_told_what_there_is(place, wanted):
    with pytest.raises(UsageError) as raised:
        find_package(place.sources(), wanted)
    assert wanted in raised.value.what
    assert f"version 2 ({place.child[:12]}), version 1 ({place.parent[:12]})" in (raised.value.fix or "")


def test_the_full_precision_package_has_the_same_run(place, outcomes):
    other = json.loads((place.run() / "exported" / "export.json").read_text())["fp32"]
    lineage = trace(place.sources(), other)
    assert lineage.packages[0].facts["precision"] == "fp32" and lineage.packages[1].name == place.parent
    assert outcomes(lineage, "failed") == {}


def test_a_resumed_run_that_moved_keeps_the_digest_of_its_settings(place, outcomes):
    """`--resume --set platform.…` rewrites both files of the run, and not the manifest."""
    run, settings = place.run() / "run.json", place.run() / "settings.json"
    before = {path: path.read_text() for path in (run, settings)}
    changed = json.loads(before[settings])
    changed["platform"]["containers"]["memory"] = "5g"
    try:
        settings.write_text(json.dumps(changed))
        run.write_text(json.dumps(json.loads(before[run]) | {"settings": changed}))
        assert outcomes(place.lineage(), "failed") == {}
    finally:
        for path, content in before.items():
            path.write_text(content)


def test_the_exit_code_says_whether_a_check_failed(place, altered):
    arguments = ["lineage", place.child[:10], "--home", str(place.home.root)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0 and "0 failed" not in done.output and "checks:" in done.output
    assert f"parent package {place.parent[:12]}" in done.output
    with altered(place.run() / "curated" / "samples.parquet"):
        done = CliRunner().invoke(app, [*arguments, "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["ok"] is False
    refused = CliRunner().invoke(app, [*arguments, "--replay"])
    assert isinstance(refused.exception, UsageError)

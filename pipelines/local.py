"""A run on this machine: open its records, let the graph work, close the records."""

import contextlib
import datetime
import getpass
import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import EmuflowError
from common.files import read_json, remove, write_json
from common.home import Home
from common.redaction import redact
from components.step import describe_error
from pipelines.connection import Connection, connect, remembered
from pipelines.containers.engine import remove_containers
from pipelines.containers.images import settle_images
from pipelines.containers.step import process_of_container
from pipelines.lock import only_run
from pipelines.memory import MemorySampler
from pipelines.parent import Parent, current_champion, find_parent
from pipelines.provenance import code_digest, describe_run, git_commit, image_digests
from pipelines.record import RunRecord, resumable_run
from pipelines.run_folder import ARGUMENTS_FILE, SETTINGS_FILE
from pipelines.settings import PlatformSettings, Settings
from pipelines.signals import Interrupted, signals_raise
from pipelines.steps import steps_of
from pipelines.supervise import supervise
from pipelines.tracking import RunTracking

OTHER_DATA_NOTICE = (
    "The champion in this home learned from other data. This run begins a lineage of its own, which cannot be compared "
    "with that champion, so it will not replace it; another --home gives it a champion of its own."
)


def run(settings: Settings, *, preset: str, home: Home, console: Console) -> RunRecord:
    """Run the whole chain once. Returns the record of a run that came to a verdict, promoted or not.

    Raises `StepFailedError` where a step failed and `Interrupted` on a signal: `resume` goes on with either.
    """
    with only_run(home) as lock, signals_raise():
        _prepare_platform(settings.platform, home)
        connection = connect(home, settings.platform)
        parent = find_parent(home, connection.release_url, settings.data.source)
        if parent.other_data:
            console.print(OTHER_DATA_NOTICE)
        record = _new_record(settings, preset, parent)
        folder = home.run(record.run_id)
        folder.mkdir(parents=True)
        write_json(folder / ARGUMENTS_FILE, _arguments(settings, record, parent, home))
        write_json(folder / SETTINGS_FILE, record.settings)
        tracking = _open_tracking(record, home, connection)
        return _execute(record, home, connection, tracking, console, lock)


def resume(home: Home, overrides: Sequence[str], console: Console) -> RunRecord:
    """Go on with the last run, which failed or was interrupted: what is complete is not repeated.

    `overrides` are of the section `platform`: an address that holds a password, which is not kept on disk, or what a
    step lacked, such as `platform.containers.memory=4g`.
    """
    with only_run(home) as lock, signals_raise():
        record = resumable_run(home)
        platform = remembered(home, overrides)
        _prepare_platform(platform, home)
        record.settings = {**record.settings, "platform": redact(platform.model_dump(mode="json"))}
        write_json(home.run(record.run_id) / SETTINGS_FILE, record.settings)
        connection = connect(home, platform)
        tracking = RunTracking(record.tracking["steps"], record.tracking["parent"])
        tracking.begin_again()
        record.status, record.error = "running", None
        _follow_code(record, home)
        _follow_champion(record, home, connection)
        return _execute(record, home, connection, tracking, console, lock)


def _prepare_platform(platform: PlatformSettings, home: Home) -> None:
    """Where steps run in containers: end those that a killed run left here, and settle the images."""
    if platform.runner == "containers":
        remove_containers(home.root)
        settle_images(platform.containers)


def _follow_code(record: RunRecord, home: Home) -> None:
    """Where the code has changed since the start, every step is repeated with it: the package names the new commit."""
    images = image_digests()
    if record.code_digest == code_digest() and {name: record.provenance.get(name) for name in images} == images:
        return
    file = home.run(record.run_id) / ARGUMENTS_FILE
    record.code_digest = code_digest()
    record.provenance |= {"git_commit": git_commit(), **images}
    write_json(file, read_json(file) | {"provenance": json.dumps(record.provenance, sort_keys=True)})


def _follow_champion(record: RunRecord, home: Home, connection: Connection) -> None:
    """Let the rest of a resumed run be measured against the champion of now; its own promotion demands that."""
    folder = home.run(record.run_id)
    file, exported = folder / ARGUMENTS_FILE, folder / "exported" / "export.json"
    champion = current_champion(connection.release_url)
    if exported.is_file() and read_json(exported)["int8"] == champion:
        return  # the run was interrupted after its own promotion: nothing is left to measure
    write_json(file, read_json(file) | {"champion": champion or ""})
    record.champion = {"before": champion, "after": champion}


def _execute(
    record: RunRecord, home: Home, connection: Connection, tracking: RunTracking, console: Console, lock: int
) -> RunRecord:
    """Run the graph to its end, whatever that is, and leave the record complete."""
    folder = home.run(record.run_id)
    record.save(home)
    console.print(f"Run {record.run_id} ({record.preset})", highlight=False)
    before_s, started = record.seconds.get("total", 0.0), time.time()
    try:
        with MemorySampler(lambda: process_of_container(folder)) as memory:
            try:
                supervise(folder, tracking, _expected_seconds(home, record.preset), console, lock)
            finally:
                record.peak_memory_mb = max(record.peak_memory_mb, round(memory.peak_mb, 1))
        record.status = "succeeded"
        remove(home.work / record.run_id)  # what only a resume would need
    except Interrupted as interruption:
        record.status, record.error = "interrupted", describe_error(interruption)
        raise
    except BaseException as error:
        record.status, record.error = "failed", describe_error(error)
        raise
    finally:
        record.seconds["total"] = round(before_s + time.time() - started, 1)
        _close(record, home, connection, tracking)
    return record


def _close(record: RunRecord, home: Home, connection: Connection, tracking: RunTracking) -> None:
    """Gather what the steps left, save the record, and close the run in MLflow."""
    folder = home.run(record.run_id)
    for file in sorted((folder / "steps").glob("*.json")):
        step = read_json(file)
        if step["seconds"] is not None:
            record.seconds[step["step"]] = step["seconds"]
    record.ended = _now().isoformat(timespec="seconds")
    record.paths = _paths(folder)
    verdict_file = folder / "verdict" / "verdict.json"
    verdict = read_json(verdict_file) if _gate_has_judged(folder) else {}
    record.verdict, record.candidate = verdict or None, verdict.get("candidate_digest")
    promoted = (_step_record(folder, "promote").get("result") or {}) if verdict else {}
    record.version, record.stage = promoted.get("version"), promoted.get("stage")
    with contextlib.suppress(EmuflowError, OSError):
        record.champion["after"] = current_champion(connection.release_url)
    record.save(home)
    metrics = {check["name"]: check["value"] for check in verdict.get("checks", []) if check["value"] is not None}
    metrics |= {"seconds": record.seconds["total"], "peak_memory_mb": record.peak_memory_mb}
    tags = _data_tags(folder)
    if verdict:
        tags |= {"emuflow.verdict": verdict["result"], "emuflow.candidate": verdict["candidate_digest"]}
    reports = [path for path in (verdict_file, folder / "verdict" / "report.html") if path.is_file()]
    tracking.finish(record.status, metrics, tags, reports)


def _gate_has_judged(folder: Path) -> bool:
    """Whether the verdict is about the newest measurements, and not what an earlier start left."""
    measured, judged = (_step_record(folder, name) for name in ("benchmark", "gate"))
    complete = measured.get("status") == judged.get("status") == "succeeded"
    return complete and measured["ended"] <= judged["started"]


def _step_record(folder: Path, name: str) -> dict[str, Any]:
    file = folder / "steps" / f"{name}.json"
    return read_json(file) if file.is_file() else {}


def _data_tags(folder: Path) -> dict[str, str]:
    """The digests of what the run learned from and is judged on, once the steps have left them."""
    sources = {
        "emuflow.data_digest": (folder / "curated" / "report.json", "table_sha256"),
        "emuflow.evaluation_digest": (folder / "evaluation_set" / "evaluation.json", "digest"),
    }
    return {tag: read_json(file)[key] for tag, (file, key) in sources.items() if file.is_file()}


def _paths(folder: Path) -> dict[str, str]:
    names = {
        "run": ".",
        "report": "verdict/report.html",
        "verdict": "verdict/verdict.json",
        "data_docs": "../../great_expectations/gx/uncommitted/data_docs/local_site/index.html",
        "quarantine": "samples/quarantine.parquet",
        "measurements": "measurements",
        "curated": "curated",
        "settings": "settings.json",
        "logs": "logs",
    }
    found = {name: os.path.normpath(folder / relative) for name, relative in names.items()}
    return {name: path for name, path in found.items() if Path(path).exists()}


def _new_record(settings: Settings, preset: str, parent: Parent) -> RunRecord:
    started = _now()
    run_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    return RunRecord(
        run_id=run_id,
        preset=preset,
        settings=redact(settings.model_dump(mode="json")),
        started=started.isoformat(timespec="seconds"),
        code_digest=code_digest(),
        champion={"before": parent.digest, "after": parent.digest},
        provenance=describe_run(settings, preset, parent.digest),
    )


def _arguments(settings: Settings, record: RunRecord, parent: Parent, home: Home) -> dict[str, str]:
    """The pipeline's parameters: each section as JSON, what the run starts from, where this home keeps things."""
    from_weights = settings.training.initialize_from == "parent"
    if settings.promotion.actor is None:  # in a container, everybody has the image's name
        promotion = settings.promotion.model_copy(update={"actor": getpass.getuser()})
        settings = settings.model_copy(update={"promotion": promotion})
    return {
        **settings.section_parameters(),
        "champion": parent.digest or "",
        "parent_tokenizers": str(parent.tokenizers or ""),
        "parent_checkpoint": str(parent.checkpoint or "") if from_weights else "",
        "parent_evaluation_set": str(parent.evaluation_set or ""),
        "provenance": json.dumps(record.provenance, sort_keys=True),
        "work": str(home.work),
        "cache": str(home.cache),
        "data_docs": str(home.data_docs),
        "package_store": str(home.packages),
        "key_folder": str(home.keys),
        "serving": str(home.serving),
    }


def _open_tracking(record: RunRecord, home: Home, connection: Connection) -> RunTracking:
    tags = {
        "kfp.pipeline_run_url": home.run(record.run_id).as_uri(),
        "kfp.pipeline_id": "emuflow-retrain",
        "kfp.pipeline_version_id": code_digest()[:16],
        "emuflow.git_commit": record.provenance["git_commit"],
        "emuflow.image_digest": record.provenance["image_digest"] or "none",
        "emuflow.parent_champion": record.champion["before"] or "none",
        "emuflow.preset": record.preset,
    }
    artifacts = home.mlflow_artifacts if connection.local else None
    tracking = RunTracking.open(record.run_id, steps_of(record.settings), record.settings, tags, artifacts)
    record.tracking = {"parent": tracking.parent, "steps": tracking.runs}
    return tracking


def _expected_seconds(home: Home, preset: str) -> dict[str, float]:
    """What each step took in the newest complete run of the same preset."""
    for file in sorted(home.last_run_file.parent.glob("*/run.json"), reverse=True):
        content = read_json(file)
        if content["preset"] == preset and content["status"] == "succeeded":
            return content["seconds"]
    return {}


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

"""What every run on this machine has in common, of the whole chain or of a measurement: its records are opened, its graph
works, its records are closed."""

import contextlib
import datetime
import getpass
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import EmuflowError
from common.files import read_json, remove
from common.home import Home
from components.promote.settings import PromotionSettings
from components.step import describe_error
from pipelines.connection import Connection
from pipelines.containers.engine import remove_containers
from pipelines.containers.images import settle_images
from pipelines.containers.step import process_of_container
from pipelines.memory import MemorySampler
from pipelines.parent import current_champion
from pipelines.provenance import code_digest
from pipelines.record import FILE_NAME, RunRecord
from pipelines.settings import PlatformSettings
from pipelines.signals import Interrupted
from pipelines.supervise import supervise
from pipelines.tracking import RunTracking


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def new_run_id(started: datetime.datetime) -> str:
    """Of runs in one home, the newest has the last one."""
    return f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def in_own_name(promotion: PromotionSettings) -> PromotionSettings:
    """With who starts the run as the actor, where none is named: in a container, everybody has the image's name."""
    return promotion if promotion.actor else promotion.model_copy(update={"actor": getpass.getuser()})


def prepare_platform(platform: PlatformSettings, home: Home) -> None:
    """Where steps run in containers: end those that a killed run left here, and settle the images."""
    if platform.runner == "containers":
        remove_containers(home.root)
        settle_images(platform.containers)


def open_tracking(
    record: RunRecord, home: Home, connection: Connection, more_tags: Mapping[str, str] | None = None
) -> RunTracking:
    """Open the record's runs in MLflow."""
    tags = {
        "kfp.pipeline_run_url": home.run(record.run_id).as_uri(),
        "kfp.pipeline_id": record.pipeline,
        "kfp.pipeline_version_id": code_digest()[:16],
        "emuflow.git_commit": record.provenance["git_commit"],
        "emuflow.image_digest": record.provenance["image_digest"] or "none",
        "emuflow.parent_champion": record.champion["before"] or "none",
        "emuflow.preset": record.preset,
        **(more_tags or {}),
    }
    artifacts = home.mlflow_artifacts if connection.local else None
    tracking = RunTracking.open(record.run_id, record.steps, record.settings, tags, artifacts)
    record.tracking = {"parent": tracking.parent, "steps": tracking.runs}
    return tracking


def execute(
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
                supervise(folder, record, tracking, _expected_seconds(home, record), console, lock)
            finally:
                record.peak_memory_mb = max(record.peak_memory_mb, round(memory.peak_mb, 1))
        record.status = "succeeded"
        remove(home.work / record.run_id)  # what only a resume would need
    except Interrupted as interruption:
        record.status, record.error = "interrupted", describe_error(interruption)
        interruption.way_on = record.way_on
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
    record.ended = now().isoformat(timespec="seconds")
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


def _expected_seconds(home: Home, record: RunRecord) -> dict[str, float]:
    """What each step took in the newest complete run of the same preset that had these steps."""
    for file in sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True):
        content = read_json(file)
        same = content["preset"] == record.preset and content["status"] == "succeeded"
        if same and set(record.steps) <= content["seconds"].keys():
            return content["seconds"]
    return {}

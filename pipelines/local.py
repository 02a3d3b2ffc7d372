"""A run on this machine: open its records, let the graph work, close the records."""

import contextlib
import datetime
import fcntl
import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import EmuflowError, UsageError
from common.files import digest_json, read_json, write_json
from common.home import Home
from common.redaction import HIDDEN, redact
from components.step import describe_error
from pipelines.connection import Connection, connect
from pipelines.memory import MemorySampler
from pipelines.orchestrate import ARGUMENTS_FILE
from pipelines.parent import Parent, current_champion, find_parent
from pipelines.provenance import code_digest, git_commit, image_digest
from pipelines.record import RunRecord, resumable_run
from pipelines.settings import PlatformSettings, Settings
from pipelines.signals import Interrupted, signals_raise
from pipelines.steps import STEPS
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
    with _only_run(home), signals_raise():
        connection = connect(home, settings.platform)
        parent = find_parent(home, connection.release_url, settings.data.source)
        if parent.other_data:
            console.print(OTHER_DATA_NOTICE)
        record = _new_record(settings, preset, parent)
        folder = home.run(record.run_id)
        folder.mkdir(parents=True)
        write_json(folder / ARGUMENTS_FILE, _arguments(settings, record, parent, home))
        write_json(folder / "settings.json", record.settings)
        tracking = _open_tracking(record, home, connection)
        return _execute(record, home, connection, tracking, console)


def resume(home: Home, platform: PlatformSettings | None, console: Console) -> RunRecord:
    """Go on with the last run, which failed or was interrupted: what is complete is not repeated.

    `platform` is needed only where its addresses hold a password, which is not kept on disk.
    """
    with _only_run(home), signals_raise():
        record = resumable_run(home)
        connection = connect(home, platform or _platform_of(record))
        tracking = RunTracking(record.tracking["steps"], record.tracking["parent"])
        tracking.begin_again()
        record.status, record.error = "running", None
        _follow_champion(record, home, connection)
        return _execute(record, home, connection, tracking, console)


def _follow_champion(record: RunRecord, home: Home, connection: Connection) -> None:
    """Let the rest of a resumed run be measured against the champion of now; its own promotion demands that."""
    file = home.run(record.run_id) / ARGUMENTS_FILE
    champion = current_champion(connection.release_url)
    write_json(file, read_json(file) | {"champion": champion or ""})
    record.champion = {"before": champion, "after": champion}


def _execute(
    record: RunRecord, home: Home, connection: Connection, tracking: RunTracking, console: Console
) -> RunRecord:
    """Run the graph to its end, whatever that is, and leave the record complete."""
    folder = home.run(record.run_id)
    record.save(home)
    console.print(f"Run {record.run_id} ({record.preset})", highlight=False)
    before_s, started = record.seconds.get("total", 0.0), time.time()
    try:
        with MemorySampler() as memory:
            try:
                supervise(folder, tracking, _expected_seconds(home, record.preset), console)
            finally:
                record.peak_memory_mb = max(record.peak_memory_mb, round(memory.peak_mb, 1))
        record.status = "succeeded"
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
    verdict = read_json(verdict_file) if verdict_file.is_file() else {}
    record.verdict, record.candidate = verdict or None, verdict.get("candidate_digest")
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
        "measurements": "measurements",
        "curated": "curated",
        "settings": "settings.json",
        "logs": "logs",
    }
    return {name: str(folder / relative) for name, relative in names.items() if (folder / relative).exists()}


def _new_record(settings: Settings, preset: str, parent: Parent) -> RunRecord:
    started = _now()
    run_id = f"{started:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    resolved = redact(settings.model_dump(mode="json"))
    return RunRecord(
        run_id=run_id,
        preset=preset,
        settings=resolved,
        started=started.isoformat(timespec="seconds"),
        champion={"before": parent.digest, "after": parent.digest},
        provenance={
            "run_id": run_id,
            "preset": preset,
            "git_commit": git_commit(),
            "image_digest": image_digest(),
            "settings_digest": digest_json(resolved),
            "parent_package": parent.digest,
        },
    )


def _arguments(settings: Settings, record: RunRecord, parent: Parent, home: Home) -> dict[str, str]:
    """The pipeline's parameters: each section as JSON, what the run starts from, where this home keeps things."""
    from_weights = settings.training.initialize_from == "parent"
    return {
        **settings.section_parameters(),
        "champion": parent.digest or "",
        "parent_tokenizers": str(parent.tokenizers or ""),
        "parent_checkpoint": str(parent.checkpoint or "") if from_weights else "",
        "parent_evaluation_set": str(parent.evaluation_set or ""),
        "provenance": json.dumps(record.provenance, sort_keys=True),
        "work": str(home.run(record.run_id) / "work"),
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
    tracking = RunTracking.open(record.run_id, STEPS, record.settings, tags, artifacts)
    record.tracking = {"parent": tracking.parent, "steps": tracking.runs}
    return tracking


def _platform_of(record: RunRecord) -> PlatformSettings:
    platform: dict[str, Any] = record.settings["platform"]
    if any(HIDDEN in str(value) for value in platform.values()):
        raise UsageError(
            "the run's platform settings hold a password, which is not kept on disk",
            where="--resume",
            fix="give them again: `emuflow run --resume --set platform.…=…`",
        )
    return PlatformSettings.parse(platform)


def _expected_seconds(home: Home, preset: str) -> dict[str, float]:
    """What each step took in the newest complete run of the same preset."""
    for file in sorted(home.last_run_file.parent.glob("*/run.json"), reverse=True):
        content = read_json(file)
        if content["preset"] == preset and content["status"] == "succeeded":
            return content["seconds"]
    return {}


@contextlib.contextmanager
def _only_run(home: Home) -> Iterator[None]:
    """Hold the home for this run. Raises `UsageError` where another run works there."""
    home.last_run_file.parent.mkdir(parents=True, exist_ok=True)
    with (home.last_run_file.parent / "lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another run works in this folder", where=str(home.root), fix="wait for it, or use another --home"
            ) from None
        yield


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)

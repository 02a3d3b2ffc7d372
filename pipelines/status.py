"""`emuflow status` and `emuflow history`: what the release store and the runs' records say."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.files import read_json
from common.home import Home
from pipelines.connection import connect
from pipelines.display import closing_table, duration
from pipelines.lock import run_is_alive
from pipelines.record import FILE_NAME
from pipelines.steps import STEPS


def read_status(home: Home) -> dict[str, Any]:
    """`champion` (its release, `None` before the first promotion), `last_run` (its record) and `serving`."""
    from serving.deployment import read_state

    state = read_state(home.serving)
    releases = _releases(home)
    return {
        "champion": releases[0] if releases else None,
        "last_run": _last_run(home),
        "serving": {"digest": state.digest, "grpc_endpoint": state.grpc_endpoint} if state else None,
    }


def read_history(home: Home) -> dict[str, Any]:
    """`champions`: every release, the newest first; `runs`: every run's id, status, verdict and digests, likewise."""
    files = sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True)
    return {"champions": _releases(home), "runs": [_summary(read_json(file)) for file in files]}


def status_table(found: Mapping[str, Any]) -> Group:
    champion, serving = found["champion"], found["serving"]
    words = f"{champion['digest'][:12]}, since {champion['time']}" if champion else "none yet"
    lines: list[Any] = [Text(f"champion     {words}")]
    lines.append(
        Text(
            f"serving      {serving['digest'][:12]} at {serving['grpc_endpoint']}"
            if serving and serving["digest"]
            else "serving      no server runs"
        )
    )
    if found["last_run"]:
        lines += [
            Text(f"last run     {found['last_run']['run_id']}: {found['last_run']['status']}"),
            closing_table(found["last_run"], STEPS),
        ]
    return Group(*lines)


def history_tables(found: Mapping[str, Any]) -> Group:
    champions = Table(title="Champions", title_justify="left")
    for column in ("#", "package", "since", "by", "why"):
        champions.add_column(column)
    for release in found["champions"]:
        champions.add_row(
            str(release["sequence"]), release["digest"][:12], release["time"], release["actor"], release["reason"]
        )
    runs = Table(title="Runs", title_justify="left")
    for column in ("run", "status", "verdict", "candidate", "measured against", "time"):
        runs.add_column(column)
    for run in found["runs"]:
        runs.add_row(
            run["run_id"],
            run["status"],
            run["verdict"] or "–",
            (run["candidate"] or "–")[:12],
            (run["champion"]["before"] or "–")[:12],
            duration(run["seconds"]),
        )
    return Group(champions, runs)


def _releases(home: Home) -> list[dict[str, Any]]:
    connection = connect(home)
    if connection.release_url == home.release_url and not (home.root / "mlflow" / "mlflow.db").is_file():
        return []  # asking a store makes it, and looking must not leave anything behind
    from serving.release.store import ReleaseStore

    store = ReleaseStore(connection.release_url)
    try:
        return [asdict(release) for release in store.history()]
    finally:
        store.close()


def _last_run(home: Home) -> dict[str, Any] | None:
    if not home.last_run_file.is_file():
        return None
    record = read_json(home.last_run_file)
    if record["status"] == "running" and not run_is_alive(home):
        record["status"] = "interrupted"  # killed so hard that it could not write that itself
    return record


def _summary(record: Mapping[str, Any]) -> dict[str, Any]:
    verdict = record["verdict"]
    return {
        **{key: record[key] for key in ("run_id", "preset", "status", "started", "candidate", "champion")},
        "seconds": record["seconds"].get("total", 0.0),
        "verdict": verdict["result"] if verdict else None,
        "reasons": verdict["reasons"] if verdict else [],
    }

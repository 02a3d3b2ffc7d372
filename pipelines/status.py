"""`emuflow status` and `emuflow history`: what the release store and the runs' records say."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from common.files import read_json
from common.home import Home
from pipelines.connection import connect, release_store
from pipelines.display import closing_table, duration
from pipelines.lock import run_is_alive
from pipelines.record import FILE_NAME
from pipelines.steps import steps_of


def read_status(home: Home) -> dict[str, Any]:
    """`champion` (its release, `None` before the first promotion), `last_run` (its record) and `serving`."""
    from serving.deployment import read_state

    state = read_state(home.serving)
    releases = _releases(home)
    return {
        "champion": releases[0] if releases else None,
        "last_run": _last_run(home),
        "serving": {
            "digest": state.digest,
            "grpc_endpoint": state.grpc_endpoint if state.reachable else "a port of its container",
        }
        if state
        else None,
    }


def read_history(home: Home) -> dict[str, Any]:
    """`champions`: every release, the newest first; `runs`: every run's id, status, verdict and digests, likewise."""
    files = sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True)
    champions = _releases(home)
    digests = [release["digest"] for release in champions]
    return {"champions": champions, "runs": [_summary(read_json(file), digests) for file in files]}


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
        version = found["last_run"].get("version")
        registered = f", version {version} in the registry" if version else ""
        lines += [
            Text(f"last run     {found['last_run']['run_id']}: {found['last_run']['status']}{registered}"),
            closing_table(found["last_run"], steps_of(found["last_run"]["settings"])),
        ]
    return Group(*lines)


def history_tables(found: Mapping[str, Any]) -> Group:
    champions = _table("Champions", "#", "package", "since", "by")
    champions.add_column("why")
    for release in found["champions"]:
        since = release["time"][:19].replace("T", " ")
        champions.add_row(str(release["sequence"]), release["digest"][:12], since, release["actor"], release["reason"])
    runs = _table("Runs", "run", "outcome", "package", "v", "stage", "time")
    for run in found["runs"]:
        runs.add_row(
            run["run_id"],
            run["verdict"] or run["status"],
            (run["candidate"] or "–")[:12],
            run["version"] or "–",
            run["stage"] or "–",
            duration(run["seconds"]),
        )
    return Group(champions, runs)


def _table(title: str, *columns: str) -> Table:
    """Without frames, so that a row fits into 80 characters; what names something stays in one piece."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _releases(home: Home) -> list[dict[str, Any]]:
    connection = connect(home)
    if connection.release_url == home.release_url and not (home.root / "mlflow" / "mlflow.db").is_file():
        return []  # asking a store makes it, and looking must not leave anything behind
    with release_store(connection.release_url) as store:
        return [asdict(release) for release in store.history()]


def _stage(candidate: str | None, champions: Sequence[str]) -> str | None:
    """What became of a run's package; `champions` are the digests of all champions, the newest first."""
    if candidate is None:
        return None
    if candidate not in champions:
        return "candidate"
    return "champion" if candidate == champions[0] else "former champion"


def _last_run(home: Home) -> dict[str, Any] | None:
    if not home.last_run_file.is_file():
        return None
    record = read_json(home.last_run_file)
    if record["status"] == "running" and not run_is_alive(home):
        record["status"] = "interrupted"  # killed so hard that it could not write that itself
    return record


def _summary(record: Mapping[str, Any], champions: Sequence[str]) -> dict[str, Any]:
    verdict = record["verdict"]
    return {
        **{key: record[key] for key in ("run_id", "preset", "status", "started", "candidate", "champion")},
        "version": record.get("version"),
        "stage": _stage(record["candidate"], champions),
        "seconds": record["seconds"].get("total", 0.0),
        "verdict": verdict["result"] if verdict else None,
        "reasons": verdict["reasons"] if verdict else [],
    }

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
from pipelines.connection import connect, nothing_released, release_store
from pipelines.display import closing_table, duration
from pipelines.lock import run_is_alive
from pipelines.record import FILE_NAME
from pipelines.steps import steps_of

_STAGE_ORDER = ("champion", "staging", "candidate")


def read_status(home: Home) -> dict[str, Any]:
    """`champion` (its release, `None` before the first promotion), `last_run` (its record) and `serving`."""
    from serving.deployment import read_state

    state = read_state(home.serving)
    champions = [release for release in _releases(home) if release["stage"] == "champion"]
    return {
        "champion": champions[0] if champions else None,
        "last_run": _last_run(home),
        "serving": {
            "digest": state.digest,
            "grpc_endpoint": state.grpc_endpoint if state.reachable else "a port of its container",
        }
        if state
        else None,
    }


def read_history(home: Home) -> dict[str, Any]:
    """`releases`: every row of every stage, the newest first; `champions`: those of the champion; `runs`: every run's id,
    status, verdict and digests, likewise;
    `measures` is the package of one that measured again."""
    files = sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True)
    releases = _releases(home)
    champions = [release for release in releases if release["stage"] == "champion"]
    runs = [_summary(read_json(file), releases) for file in files]
    return {"releases": releases, "champions": champions, "runs": runs}


def status_table(found: Mapping[str, Any]) -> Group:
    champion, serving = found["champion"], found["serving"]
    words = f"{champion['digest'][:12]}, since {champion['time']}" if champion else "none yet"
    lines: list[Any] = [Text(f"champion     {words}")]
    lines.append(
        Text(
            f"serving      {serving['digest'][:12]} at {serving['grpc_endpoint']}"
            if serving and serving["digest"]
            else f"serving      {'a package is being loaded' if serving else 'no server runs'}"
        )
    )
    if found["last_run"]:
        version = found["last_run"].get("version")
        registered = f", version {version} in the registry" if version else ""
        lines += [
            Text(f"last run     {found['last_run']['run_id']}: {found['last_run']['status']}{registered}"),
            closing_table(
                found["last_run"], steps_of(found["last_run"]["settings"], found["last_run"].get("measures"))
            ),
        ]
    return Group(*lines)


def history_tables(found: Mapping[str, Any]) -> Group:
    releases = _table("Releases", "stage", "#", "package", "since", "by")
    releases.add_column("why")
    for release in found["releases"]:
        since = release["time"][:19].replace("T", " ")
        name = (release["stage"], str(release["sequence"]), release["digest"][:12])
        releases.add_row(*name, since, release["actor"], _why(release))
    runs = _table("Runs", "run", "outcome", "package", "v", "stage", "time")
    for run in found["runs"]:
        runs.add_row(
            run["run_id"],
            f"{run['verdict'] or run['status']}{', again' if run['measures'] else ''}",
            (run["candidate"] or "–")[:12],
            run["version"] or "–",
            run["stage"] or "–",
            duration(run["seconds"]),
        )
    return Group(releases, runs)


def _why(release: Mapping[str, Any]) -> str:
    """The reason, and what else a row knows of it: approval, evidence, its age."""
    words = [f"rollback: {release['reason']}" if release["action"] == "rollback" else release["reason"]]
    if release["approved_by"]:
        words.append(f"approved by {release['approved_by']}: {release['approval_reason']}")
    if release["evidence_digest"]:
        words.append(f"evidence {release['evidence_digest'][:12]}")
    if not release["audited"]:
        words.append("older than the audit log")
    return "\n".join(words)


def _table(title: str, *columns: str) -> Table:
    """Without frames, so that a row fits into 80 characters; what names something stays in one piece."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _releases(home: Home) -> list[dict[str, Any]]:
    connection = connect(home)
    if nothing_released(home, connection):
        return []
    with release_store(connection.release_url) as store:
        rows = [release for stage in _STAGE_ORDER for release in store.history(stage)]
    described = [{**asdict(row), "audited": row.action is not None} for row in rows]
    return sorted(described, key=lambda release: release["time"], reverse=True)


def _stage(candidate: str | None, releases: Sequence[Mapping[str, Any]]) -> str | None:
    """What became of a run's package; `releases` has the newest first."""
    if candidate is None:
        return None
    for stage, former in (("champion", "former champion"), ("staging", "formerly staging")):
        digests = [release["digest"] for release in releases if release["stage"] == stage]
        if candidate in digests:
            return stage if candidate == digests[0] else former
    return "candidate"


def _last_run(home: Home) -> dict[str, Any] | None:
    if not home.last_run_file.is_file():
        return None
    record = read_json(home.last_run_file)
    if record["status"] == "running" and not run_is_alive(home):
        record["status"] = "interrupted"  # killed so hard that it could not write that itself
    return record


def _summary(record: Mapping[str, Any], releases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    verdict = record["verdict"]
    return {
        **{key: record[key] for key in ("run_id", "preset", "status", "started", "candidate", "champion")},
        "measures": record.get("measures"),
        "version": record.get("version"),
        "stage": _stage(record["candidate"], releases),
        "seconds": record["seconds"].get("total", 0.0),
        "verdict": verdict["result"] if verdict else None,
        "reasons": verdict["reasons"] if verdict else [],
    }

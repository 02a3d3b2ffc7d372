"""`emuflow measure`, `emuflow promote`, `emuflow rollback` and `emuflow audit`."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table
from rich.text import Text

from common.errors import UsageError
from common.home import Home
from pipelines.cli_options import DEFAULT_HOME, HomeOption, SetOption, console

if TYPE_CHECKING:
    from components.promote.follow import ServerState
    from components.promote.rollback import RollbackResult

release_app = typer.Typer()
audit_app = typer.Typer(no_args_is_help=True, help="Who released, refused, approved and took back what.")
release_app.add_typer(audit_app, name="audit")

VersionArgument = Annotated[
    str, typer.Argument(help="A version number of the registry, or 8 or more characters of a digest.")
]
WhyOption = Annotated[str | None, typer.Option("--why", metavar="TEXT", help="Recorded with it.")]
_SERVER: dict["ServerState", str] = {
    "not running": "No server runs here; `emuflow serve` will serve it.",
    "updated": "The running server serves it.",
    "left as it was": "The server that runs follows by itself, unless it was started for a package of its own.",
    "another champion": "Another package has become the champion since, and the running server serves that one.",
    "failed": "The running server does not serve it yet, and tries again by itself: see its log.",
}


@release_app.command()
def measure(
    version: VersionArgument,
    overrides: SetOption = None,
    promote: Annotated[
        bool, typer.Option("--promote/--no-promote", help="Whether a PASS is promoted as far as the settings say.")
    ] = True,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Measure a candidate once more, against the champion of now: benchmark, gate, promote. It goes by the settings of the
    run that made it; --set changes those of benchmark, gate, promotion and platform."""
    from pipelines import measuring
    from pipelines.display import closing_table

    record = measuring.measure(Home(home), version, overrides or [], promote=promote, console=console)
    console.print(closing_table(vars(record), record.steps), crop=False)


@release_app.command()
def promote(
    version: VersionArgument,
    to: Annotated[Literal["staging", "champion"], typer.Option("--to", help="The stage.")],
    approve_by: Annotated[
        str | None, typer.Option("--approve-by", metavar="NAME", help="The person who wants it; goes with --why.")
    ] = None,
    why: WhyOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Promote a measured candidate to a stage: its verdict must be a PASS against the champion of now."""
    from pipelines.releasing import promote_version
    from serving.release.rows import Approval

    if (approve_by is None) != (why is None):
        raise UsageError("--approve-by and --why go together", where="emuflow promote")
    approval = Approval(approve_by, why) if approve_by and why else None
    done = promote_version(Home(home), version, to, approval)
    stands = "is in" if to == "staging" else "is the"
    was = "already " if done.already else ""
    _say(f"Version {done.version}, package {done.release.digest[:12]}, {was}{stands} {to}.")
    if to == "champion":
        _say(_SERVER[done.server])


@release_app.command()
def rollback(
    to: Annotated[
        str | None, typer.Option("--to", metavar="VERSION", help="An earlier champion; else the one before.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(
            "--of", metavar="VERSION", help="The champion to take back; if it is not the champion, do nothing."
        ),
    ] = None,
    why: WhyOption = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Make an earlier champion the champion again, at once and without retraining."""
    from pipelines.releasing import roll_back_to

    done = roll_back_to(Home(home), to, of, why, _tell_rollback)
    if done.resumed:
        _say("This finished a rollback that had broken off. To go further back, call it again.")
    elif done.server == "failed":
        _say("To go further back, to a champion that can be loaded, call it again.")


@audit_app.command()
def verify(
    home: HomeOption = DEFAULT_HOME, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False
) -> None:
    """Check that no row of the audit log or of the releases was altered, removed or inserted; exit code 1 where one was."""
    from dataclasses import asdict

    from pipelines.releasing import verify_log

    found = verify_log(Home(home))
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        _say(f"{found.entries} entries, {found.releases} releases.")
        if found.older:
            _say(f"Older than the audit log, and as they were when it was opened: {', '.join(found.older)}.")
        for finding in found.findings:
            console.print(_shown(f"{finding.where}: {finding.what}"), style="red", markup=False, soft_wrap=True)
        if not found.findings:
            _say("The audit log is whole.")
    if found.findings:
        sys.exit(1)


@audit_app.command()
def log(home: HomeOption = DEFAULT_HOME) -> None:
    """Show every entry, the newest first."""
    from pipelines.releasing import read_log

    table = Table("#", "when", "what", "stage", "package", "by", "why", title="Audit log", title_justify="left")
    for entry in read_log(Home(home)):
        content = entry.parsed()
        about = entry.part("release") or content
        told = (
            str(content.get("time", ""))[:19].replace("T", " "),
            content.get("action", "cannot be read"),
            about.get("stage", ""),
            str(about.get("digest", ""))[:12],
            about.get("actor", ""),
            about.get("reason", ""),
        )
        table.add_row(*(Text(_shown(cell)) for cell in (entry.sequence, *told)))
    console.print(table)


def _tell_rollback(done: "RollbackResult") -> None:
    release = done.release
    _say(
        f"Rolled back: {release.digest[:12]} is the champion again, in the place of {str(release.previous_digest)[:12]}."
    )
    if done.answered:
        _say(f"It answers, {done.seconds:.1f} s after the command.")
    else:
        _say(_SERVER[done.server])


def _shown(value: object) -> str:
    """In the log may stand what no terminal can show: somebody else may have written it."""
    return str(value).encode(errors="replace").decode()


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)

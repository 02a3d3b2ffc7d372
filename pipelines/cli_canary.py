"""`emuflow canary`: a package in staging gets some of the users, and is watched."""

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from common.home import Home
from pipelines.cli_options import DEFAULT_HOME, HomeOption, console

if TYPE_CHECKING:
    from pipelines.canaries import CanaryReport
    from serving.release.experiments.states import Record

canary_app = typer.Typer(
    no_args_is_help=True, help="Send some users to a package in staging, and watch what comes of it."
)

NameArgument = Annotated[str, typer.Argument(help="The canary's name.")]
ReasonOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="Recorded with it.")]


@canary_app.command()
def start(
    version: Annotated[str, typer.Argument(help="A version number of the registry, or the beginning of a digest.")],
    why: ReasonOption = "no reason was given",
    name: Annotated[str | None, typer.Option("--name", help="Else the beginning of the package's digest.")] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Begin: `emuflow serve` loads the package as the model `canary`, and routers send the first share of users to it."""
    from pipelines import canaries

    record = canaries.start(Home(home), version, name, why)
    _tell(record, "has begun")
    _say(
        "A running `emuflow serve` loads it within seconds, and nobody is sent to it before. Your service routes users with"
    )
    _say(
        f"serving.release.experiments (docs/experiments.md); what is proven: emuflow canary status {record.experiment.name}"
    )


@canary_app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="Else the one that changed last.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Look at what was recorded, act on what is proven, and show both."""
    from pipelines import canaries

    found = canaries.look(Home(home), name)
    if as_json:
        sys.stdout.write(json.dumps(found.describe(), indent=2) + "\n")
    else:
        _show(found)


@canary_app.command()
def share(
    name: NameArgument,
    part: Annotated[float, typer.Argument(min=0, max=1, help="Of all users.")],
    why: ReasonOption,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Give it another share of the users; routers follow within a second."""
    from pipelines import canaries

    _tell(canaries.set_share(Home(home), name, part, why), "has another share")


@canary_app.command()
def stop(name: NameArgument, why: ReasonOption, home: HomeOption = DEFAULT_HOME) -> None:
    """End it: no user is sent to it any more."""
    from pipelines import canaries

    _tell(canaries.stop(Home(home), name, why), "is stopped")


def _tell(record: "Record", what: str) -> None:
    arm = record.experiment.challengers[0]
    _say(
        f"Canary '{record.experiment.name}' {what}: package {arm.digest[:12]}, {arm.share:.0%} of the users, {arm.status}."
    )


def _show(found: "CanaryReport") -> None:
    record = found.record
    title = f"Canary {record.experiment.name}, state {record.sequence} of {record.time[:19].replace('T', ' ')}"
    table = _table("arm", "package", "status", "share", "users", "requests", "errors", "latency", "votes", title=title)
    control = 1 - sum(arm["share"] for arm in found.arms)
    for arm in found.arms:
        mean = arm.get("mean_latency_ms")
        table.add_row(
            arm["name"],
            arm["digest"][:8],
            arm["status"] if arm["served"] else f"{arm['status']}, not served",
            f"{control if arm['status'] == 'control' else arm['share']:.0%}",
            str(arm.get("users", 0)),
            str(arm.get("requests", 0)),
            str(arm.get("errors", 0)),
            "" if mean is None else f"{mean:.1f} ms",
            f"+{arm.get('good_votes', 0)} -{arm.get('bad_votes', 0)}",
        )
    console.print(table)
    proven = _table("metric", "of", "verdict", "effect", "at least", "at most", "margin", "users")
    for finding in found.findings:
        numbers = [finding[key] for key in ("effect", "low", "high", "margin")]
        effect, low, high, margin = ("" if number is None else f"{number:.4g}" for number in numbers)
        users = f"{finding['users']} / {finding['control_users']}"
        proven.add_row(finding["metric"], finding["scope"], finding["verdict"], effect, low, high, margin, users)
    if found.findings:
        console.print(proven)
    _say(("This look changed it: " if found.changed else "Last change: ") + record.reason)


def _table(*columns: str, title: str | None = None) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    return Table(*columns, title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)

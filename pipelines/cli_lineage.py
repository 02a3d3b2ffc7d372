"""`emuflow lineage`: from an answer or a model back to the data, with every digest that can be checked."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from common.errors import UsageError
from common.home import Home
from pipelines.cli_options import DEFAULT_HOME, HomeOption, console

lineage_app = typer.Typer()
_LONGEST_LINE = 1000


@lineage_app.command()
def lineage(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="VERSION|RESPONSE.json",
            help="A version's number, a package's digest (8 characters or more), champion, or a file that `generate --json` wrote.",
        ),
    ],
    output_format: Annotated[Literal["text", "json", "mermaid"], typer.Option("--format")] = "text",
    replay: Annotated[
        bool, typer.Option("--replay", help="Draw the answer's image again, and compare the pixels.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Show what a model or an answer was made from, back to the first of its lineage; exit code 1 where a check fails."""
    from pipelines.lineage.answers import trace_response
    from pipelines.lineage.collect import trace
    from pipelines.lineage.render import as_json, as_mermaid, as_tree, summary
    from pipelines.lineage.sources import read_sources

    is_response = subject.endswith(".json")
    if replay and not is_response:
        raise UsageError("only an answer can be drawn again", where="--replay", fix="name a RESPONSE.json")
    sources = read_sources(Home(home))
    found = trace_response(sources, Path(subject), draw_again=replay) if is_response else trace(sources, subject)
    if output_format == "text":
        wide = console if console.is_terminal else Console(width=_LONGEST_LINE)  # a line of a file stays a line
        wide.print(as_tree(found), highlight=False)
        wide.print(summary(found), highlight=False)
    else:
        sys.stdout.write(as_json(found) if output_format == "json" else as_mermaid(found))
    if found.failed:
        raise typer.Exit(1)

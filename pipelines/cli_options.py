"""What the files of the command line share."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console()
HomeOption = Annotated[
    Path, typer.Option("--home", envvar="EMUFLOW_HOME", help="Everything that runs leave lies under this folder.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; may be repeated.")
]
DEFAULT_HOME = Path("runs")

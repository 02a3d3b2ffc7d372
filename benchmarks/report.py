"""The one form of every benchmark's result: rows of measurements, and checks of what is promised."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from common.files import write_json
from components.benchmark.machine import MachineWatch
from components.benchmark.measurements import ProcessorShares
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.settings import NeighbourSettings

_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One thing that was measured. `more` holds the benchmark's own columns."""

    name: str
    median_ms: float | None = None
    p95_ms: float | None = None
    accuracy: float | None = None
    n: int = 0
    """What the accuracy is over."""
    more: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        own = {"name": self.name, "median_ms": self.median_ms, "p95_ms": self.p95_ms}
        return own | {"accuracy": self.accuracy, "n": self.n} | self.more


@dataclass(frozen=True)
class Check:
    """A promise: the bound is what must hold (None: the value is only reported), the aim is what we came for; `n` is what
    the value rests on."""

    name: str
    value: float
    bound: float | None
    aim: float
    n: int
    at_least: bool = True
    low: float | None = None
    high: float | None = None
    """The 95% interval of the value, where one was computed."""
    aim_withheld: str | None = None
    """What else the aim takes and is not there, so that no value reaches it; None: nothing."""

    @property
    def ok(self) -> bool:
        return self.bound is None or self._holds(self.bound)

    @property
    def reached(self) -> bool:
        """Whether the aim is reached, too."""
        return self.aim_withheld is None and self._holds(self.aim)

    def _holds(self, limit: float) -> bool:
        return self.value >= limit if self.at_least else self.value <= limit

    def describe(self) -> dict[str, Any]:
        own = {"name": self.name, "value": self.value, "bound": self.bound, "aim": self.aim}
        own |= {"ok": self.ok, "n": self.n, "at_least": self.at_least, "low": self.low, "high": self.high}
        return own | ({"aim_withheld": self.aim_withheld} if self.aim_withheld else {})


@dataclass
class Report:
    """A benchmark while it runs, and its result."""

    benchmark: str
    command: str
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    columns: Sequence[str] = ()
    """Names in the rows' `more` that the printed table shows; the file has all."""
    notes: dict[str, Any] = field(default_factory=dict)
    watch: MachineWatch = field(default_factory=MachineWatch.start)
    commit: str = field(default_factory=lambda: commit())
    """At the start: pictures that a benchmark writes beside its result make the checkout differ."""
    timings: list[ProcessorShares | None] = field(default_factory=list)
    """Who had the processors in each stretch of `timed` rounds; None where the system does not tell."""

    @contextmanager
    def timed(self, own_cpu_s: Callable[[], float] = time.process_time) -> Iterator[None]:
        """Around rounds that are timed: what other processes had of the processors meanwhile is in the result, and `finish`
        warns where that was so much that ours waited. Ours are those whose processor time `own_cpu_s` gives: this one alone,
        or by `family_cpu_s` those that it started, too."""
        neighbours = Neighbours(own_cpu_s)
        yield
        self.timings.append(neighbours.shares())

    @property
    def neighbours_share(self) -> float | None:
        """What others had of the processors in the worst stretch of timed rounds; None where one is not known, or there is
        none."""
        known = [shares.others for shares in self.timings if shares is not None]
        return max(known) if known and len(known) == len(self.timings) else None

    def describe(self) -> dict[str, Any]:
        return {
            "benchmark": self.benchmark,
            "commit": self.commit,
            "command": self.command,
            "machine": self.watch.finish().model_dump() | {"threads": os.environ.get("OMP_NUM_THREADS")},
            "rows": [row.describe() for row in self.rows],
            "checks": [check.describe() for check in self.checks],
            **({"neighbours_share": self.neighbours_share} if self.timings else {}),
            **self.notes,
        }

    def finish(self, console: Console, file: Path | None) -> bool:
        """Print both tables, and a warning where others disturbed the times; write the JSON form where one is asked for;
        whether every bound holds."""
        console.print(_row_table(self.rows, self.columns), crop=False)
        console.print(_check_table(self.checks), crop=False)
        if any(are_disturbing(NeighbourSettings(), shares) for shares in self.timings):
            console.print(_warning(self.neighbours_share))
        if file is not None:
            write_json(file, self.describe())
        return all(check.ok for check in self.checks)


class Announcer:
    """Tells what a long benchmark is at, with the time since it began: a line each, also where no terminal is."""

    def __init__(self, console: Console):
        self._console, self._started = console, time.monotonic()

    def __call__(self, what: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._started), 60)
        self._console.print(f"[{minutes}:{seconds:02}] {what}", markup=False, highlight=False)


def family_cpu_s() -> float:
    """Processor time that this process, those that it started and theirs had so far, also of those that have ended."""
    total, own = 0.0, psutil.Process()
    for process in (own, *own.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def commit() -> str:
    """The commit that is measured, with `-dirty` behind it where files differ from it."""
    told = subprocess.run(
        ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
        capture_output=True,
        text=True,
        check=False,
    )
    return told.stdout.strip() or "unknown"


def command_line() -> str:
    """How this process was started: `emuflow bench …`, or a module of this folder. Of a path that begins at this machine's
    root, the name alone."""
    program = Path(sys.argv[0]).resolve()
    own = program.parent == Path(__file__).resolve().parent
    arguments = [Path(argument).name if argument.startswith("/") else argument for argument in sys.argv[1:]]
    return " ".join([f"python -m benchmarks.{program.stem}" if own else "emuflow", *arguments])


def _row_table(rows: list[Row], columns: Sequence[str]) -> Table:
    """What fits a terminal: the common columns, and those of the benchmark's own that `columns` names."""
    table = Table("", "median ms", "p95 ms", "accuracy", *(name.replace("_", " ") for name in columns), "n")
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in rows:
        values = [row.median_ms, row.p95_ms, row.accuracy, *(row.more.get(name) for name in columns), row.n or None]
        table.add_row(row.name, *(_shown(value) for value in values))
    return table


def _check_table(checks: list[Check]) -> Table:
    table = Table("check", "value", "bound", "aim", "n", "")
    for column in table.columns[1:5]:
        column.justify = "right"
    for check in checks:
        sign = "≥" if check.at_least else "≤"
        limits = ("reported" if check.bound is None else f"{sign} {_shown(check.bound)}", f"{sign} {_shown(check.aim)}")
        table.add_row(check.name, _shown(check.value), *limits, str(check.n), _verdict(check))
    return table


def _warning(share: float | None) -> str:
    told = "it is not known what other processes had" if share is None else f"other processes had up to {share:.0%}"
    return f"[yellow]warning: {told} of the processors while this was timed; time it again on a machine that is idle[/]"


def _verdict(check: Check) -> str:
    if check.reached:
        return "[green]aim reached[/]"
    said = [] if check.bound is None else ["[green]ok[/]" if check.ok else "[bold red]missed[/]"]
    if check.aim_withheld:
        said.append(f"not the aim: {check.aim_withheld}")
    return ", ".join(said)


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

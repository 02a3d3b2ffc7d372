"""What the terminal shows of a run: the steps while they work, a table at the end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.watch import StepState

_SIGNS = {
    "waiting": Text("·", "dim"),
    "running": Text("▶", "cyan"),
    "succeeded": Text("✓", "green"),
    "failed": Text("✗", "red"),
}
_UNDECIDED = ("INCONCLUSIVE", "INVALID")
_SHOWN_VALUES = 3
_LINE_INTERVAL_S = 20.0


class Display(Protocol):
    """Shows the steps of a run as they change."""

    def update(self, states: Sequence[StepState], elapsed_s: float, remaining_s: float | None) -> None: ...

    def __enter__(self) -> "Display": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def make_display(console: Console) -> Display:
    """A table that is redrawn on a terminal, else a line for each change and now and then one for a working step."""
    return _LiveDisplay(console) if console.is_terminal else _LineDisplay(console)


class _LiveDisplay:
    def __init__(self, console: Console):
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def update(self, states: Sequence[StepState], elapsed_s: float, remaining_s: float | None) -> None:
        left = f" · about {duration(remaining_s)} left" if remaining_s is not None else ""
        table = Table.grid(padding=(0, 2))
        for state in states:
            table.add_row(_SIGNS[state.status], state.name, _bar(state), _words(state))
        self._live.update(Group(Text(f"{duration(elapsed_s)}{left}", "bold"), table))

    def __enter__(self) -> "_LiveDisplay":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


class _LineDisplay:
    def __init__(self, console: Console):
        self._console = console
        self._shown: dict[str, str] = {}
        self._last_line_s = 0.0

    def update(self, states: Sequence[StepState], elapsed_s: float, remaining_s: float | None) -> None:
        for state in states:
            changed = state.status != self._shown.get(state.name, "waiting")
            quiet = elapsed_s - self._last_line_s >= _LINE_INTERVAL_S
            if not changed and not (state.status == "running" and quiet):
                continue
            self._shown[state.name] = state.status
            self._last_line_s = elapsed_s
            took = f" ({duration(state.seconds)})" if state.status == "succeeded" else ""
            line = f"[{duration(elapsed_s)}] {state.name}: {state.status}{took} {_words(state)}".rstrip()
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> "_LineDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return


def duration(seconds: float) -> str:
    """`7 s`, `1:05` or `1:02:03`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def closing_table(record: Mapping[str, Any], steps: Sequence[str]) -> Group:
    """The times, the verdict and where everything lies, from a run's record."""
    times = Table(title="Steps", title_justify="left")
    times.add_column("step")
    times.add_column("time", justify="right")
    for step in steps:
        if step in record["seconds"]:
            times.add_row(step, duration(record["seconds"][step]))
    times.add_section()
    times.add_row("total", duration(record["seconds"].get("total", 0.0)))
    times.add_row("peak memory", f"{record['peak_memory_mb']:.0f} MiB")
    parts: list[Any] = [times]
    if record["error"]:
        parts.append(Text(f"{record['status'].capitalize()}: {record['error']['message']}", "red"))
    if record["verdict"]:
        parts += [verdict_table(record["verdict"]), Text(_outcome(record), "bold")]
    for name, path in record["paths"].items():
        parts.append(Text(f"{name:<12} {_short(path)}", no_wrap=True, overflow="ignore"))  # a path stays in one piece
    return Group(*parts)


def _short(path: str) -> str:
    """`path` as one would type it here."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def verdict_table(verdict: Mapping[str, Any]) -> Table:
    table = Table(title=f"Verdict: {verdict['result']}", title_justify="left")
    table.add_column("check")
    for column in ("value", "bound", "n"):
        table.add_column(column, justify="right")
    table.add_column("")
    for check in verdict["checks"]:
        value = "–" if check["value"] is None else f"{check['value']:.4g}"
        sign = Text("ok", "green") if check["ok"] else Text(check["result"], "red")
        table.add_row(check["name"], value, f"{check['comparison']} {check['bound']:.4g}", str(check["n"]), sign)
    return table


def _outcome(record: Mapping[str, Any]) -> str:
    before, after, candidate = record["champion"]["before"], record["champion"]["after"], record["candidate"]
    if candidate and after == candidate and before != candidate:
        return f"Promoted: {candidate[:12]} is the champion."
    if candidate and record.get("stage") == "staging":
        on = "canary start {}" if _asks_users(record) else "promote {} --to champion"
        return f"In staging: {candidate[:12]}. `emuflow {on.format(record['version'])}` goes on from there."
    stays = f"{after[:12]} stays the champion" if after else "there is no champion yet"
    return f"Not promoted: {stays}.{_next(record)}"


def _asks_users(record: Mapping[str, Any]) -> bool:
    """Whether a canary must have passed before the candidate becomes the champion."""
    return bool(record["champion"]["before"]) and record["settings"].get("promotion", {}).get("canary") == "required"


def _next(record: Mapping[str, Any]) -> str:
    """What can still be done with a candidate that was not promoted."""
    result, version = record["verdict"]["result"], record.get("version")
    if not version:
        return ""
    if result == "PASS":
        stage = "staging" if _asks_users(record) else "champion"
        return f" `emuflow promote {version} --to {stage}` does that."
    return f" `emuflow measure {version}` measures it again." if result in _UNDECIDED else ""


def _bar(state: StepState) -> ProgressBar | Text:
    if state.status == "running" and state.total:
        return ProgressBar(total=state.total, completed=state.done, width=24)
    return Text(duration(state.seconds) if state.status != "waiting" else "")


def _words(state: StepState) -> str:
    if state.status == "succeeded":
        return f"{'(earlier) ' if state.earlier else ''}{_values(state.record or {})}".rstrip()
    if state.status == "failed":
        return str((state.record or {}).get("error", {}).get("message", ""))
    if state.status == "running" and state.total:
        left = f", {duration(state.remaining_s)} left" if state.remaining_s is not None else ""
        return f"{state.done}/{state.total} {state.message}{left}"
    return ""


def _values(record: Mapping[str, Any]) -> str:
    """A few of the numbers that the step's function returned."""
    numbers = {k: v for k, v in record.get("result", {}).items() if isinstance(v, int | float) and "." not in k}
    return ", ".join(
        f"{k.replace('_', ' ')} {v:.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in list(numbers.items())[:_SHOWN_VALUES]
    )

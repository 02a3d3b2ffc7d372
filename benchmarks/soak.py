"""Does a server that is busy all the time answer every request, as fast at the end as at the start, in the same memory?

    emuflow bench soak --json FILE [--minutes 30]

The kept progressive checkpoint in INT8, packaged with the pipeline's default settings, behind the real Triton server on
this machine. Requests come at random times from a process of its own, at four fifths of what the server was measured to
give, and a latency counts from when its request was due.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from rich.console import Console

from benchmarks.load import Load, run_load
from benchmarks.report import Announcer, Check, Report, Row, command_line, family_cpu_s
from benchmarks.served_package import build
from benchmarks.serving import Samples
from common.errors import ServerError
from components.export.settings import DecodingSettings, ExportSettings
from serving.server import TritonServer

_MODEL = "soaked"
_CLIENTS = 16
_SHARE = 0.8
_TENTHS = 10


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How long everything takes."""

    minutes: float = 30.0
    warmup_seconds: float = 60.0
    """At the same load as what follows: memory counts from its end."""
    capacity_rounds: int = 7
    capacity_seconds: float = 4.0
    """Of each round of measuring the capacity, before the load and after it."""


@dataclass
class Memory:
    """What the processes of a server take, sampled until it is told to stop."""

    pid: int
    every_s: float
    at_s: list[float] = field(default_factory=list)
    """Seconds since the start of each sample."""
    megabytes: list[float] = field(default_factory=list)
    """Resident, of all processes together."""
    lost: set[int] = field(default_factory=set)
    """Processes of the first sample that have gone since."""

    def watch(self, stop: threading.Event) -> None:
        start = time.monotonic()
        first = {process.pid for process in _family(self.pid)}
        while not stop.wait(self.every_s):
            there = _family(self.pid)
            self.lost |= first - {process.pid for process in there}
            self.at_s.append(time.monotonic() - start)
            self.megabytes.append(sum(map(_resident, there)) / 2**20)

    @property
    def growth(self) -> float:
        """Of the median of the last tenth over that of the first one: 0.05 is 5% more."""
        tenth = max(1, len(self.megabytes) // _TENTHS)
        first, last = self.megabytes[:tenth], self.megabytes[-tenth:]
        return float(np.median(last) / np.median(first)) - 1


def run(
    console: Console, file: Path | None, amount: Amount | None = None, package: Callable[[Path], Path] | None = None
) -> bool:
    """Measure, print, write `file`; whether every bound holds.

    `package` builds what is served in a folder, and signs it with the keys in `keys` there.
    """
    amount = amount or Amount()
    report = Report("soak", command_line(), columns=("p99_ms", "memory_mb"))
    announce = Announcer(console)
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="emuflow-soak-")))
        announce("packaging the model")
        served = (package or _default_package)(work)
        announce("starting Triton")
        server = stack.enter_context(TritonServer(work / "server", work / "keys"))
        server.load(served, _MODEL, expected_digest=served.name)
        announce("measuring the capacity")
        before = measure_capacity(server.grpc_endpoint, amount)
        rate = _SHARE * float(np.median(before))
        announce(f"warming up with {rate:.0f} requests a second")
        warmup = run_load(server.grpc_endpoint, _MODEL, rate=rate, seconds=amount.warmup_seconds)
        announce(f"{amount.minutes:g} minutes with {rate:.0f} requests a second")
        with report.timed(family_cpu_s):
            load, memory = _soak(server, rate, 60 * amount.minutes)
        announce("measuring the capacity again")
        after: list[float] = []
        with suppress(RuntimeError, ServerError):  # what was soaked is told all the same
            after = measure_capacity(server.grpc_endpoint, amount)
    report.rows += rows(load, memory)
    report.checks += checks(load, memory, warmup)
    report.notes |= {
        "minutes": amount.minutes,
        "capacity_images_per_s": float(np.median(before)),
        "capacity_rounds_per_s": {"before": before, "after": after},
        "offered_per_s": rate,
        # Of all rounds: a neighbour that was busy while the capacity was measured would make the load a smaller part.
        "offered_share_of_capacity": rate / float(np.median(before + after)),
        "memory_mb": {"first": memory.megabytes[0], "last": memory.megabytes[-1], "largest": max(memory.megabytes)},
        "warmup_requests": _asked(warmup),
        "errors": [*warmup.errors, *load.errors][:20],
    }
    return report.finish(console, file)


def rows(load: Load, memory: Memory) -> list[Row]:
    """All, and each minute: the requests that were due in it, and the memory."""
    due, times = np.array(load.due_s), np.array(load.image_ms)
    at, megabytes = np.array(memory.at_s), np.array(memory.megabytes)
    made = [_row("all", times, megabytes)]
    for minute in range(int(due.max() // 60) + 1 if len(due) else 0):
        in_it = due // 60 == minute
        if in_it.any():
            made.append(_row(f"minute {minute + 1}", times[in_it], megabytes[at // 60 == minute]))
    return made


def _row(name: str, times: np.ndarray, megabytes: np.ndarray) -> Row:
    if not len(times):
        return Row(name)
    more: dict[str, float | None] = {"p99_ms": float(np.quantile(times, 0.99)), "largest_ms": float(times.max())}
    more["memory_mb"] = float(np.median(megabytes)) if len(megabytes) else None
    return Row(name, float(np.median(times)), float(np.quantile(times, 0.95)), n=len(times), more=more)


def checks(load: Load, memory: Memory, warmup: Load) -> list[Check]:
    """No request may be lost, also of the `warmup`, which nothing else counts."""
    asked, lost = _asked(warmup) + _asked(load), len(warmup.errors) + len(load.errors)
    samples = len(memory.megabytes)
    return [
        Check("soak_errors", lost, 0, 0, asked, at_least=False),
        Check("soak_processes_lost", len(memory.lost), 0, 0, samples, at_least=False),
        Check("soak_memory_growth", memory.growth, 0.05, 0.01, samples, at_least=False),
    ]


def _asked(load: Load) -> int:
    return len(load.image_ms) + len(load.errors)


def _default_package(work: Path) -> Path:
    return build("progressive", "int8", DecodingSettings(), ExportSettings(), work, work / "keys")


def measure_capacity(endpoint: str, amount: Amount) -> list[float]:
    """Images a second with as many clients as never leave the server idle, in each round: the load of `benchmarks.serving`
    with previews. The median is what counts: more than it can give makes Triton stand still.

    A first round that is not counted finds what is to become warm. Raises `RuntimeError` for a request without its answer.
    """
    samples = Samples()
    for number in range(1 + amount.capacity_rounds):
        samples.add(run_load(endpoint, _MODEL, clients=_CLIENTS, seconds=amount.capacity_seconds, seed=number))
    return samples.images_per_s[1:]


def _soak(server: TritonServer, rate: float, seconds: float) -> tuple[Load, Memory]:
    memory, stop = Memory(server.pid, every_s=min(1.0, seconds / 50)), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(memory.watch, stop)
        try:
            load = run_load(server.grpc_endpoint, _MODEL, rate=rate, seconds=seconds)
        finally:
            stop.set()
        watching.result()
    return load, memory


def _family(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0

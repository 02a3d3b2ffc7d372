"""How soon does a rollback serve, does it lose a request, and does ever more than one of many promoters win?

    emuflow bench release --json FILE [--quick]

Two packages of the kept progressive checkpoint in INT8, as the pipeline exports them, behind `emuflow serve` with its
real Triton server, which four clients ask twenty times a second; a second row has what that takes when they ask without
a pause, and leave nothing of the machine to the rollback. `emuflow rollback` runs as a process of its own, and its time
counts from its start until the first answer of the package that was put back: importing Python's modules, verifying the
package and loading it are all in it. Then twenty processes, each with its own connection to one SQLite file, race for
the champion's place round by round, and the audit log that they left is checked. Last, tests of A/B under no difference are
simulated and looked at 100 times each, as in `emuflow bench experiments`, which tells more of them.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from benchmarks import experiments
from benchmarks.experiment_traffic import NewUsers
from benchmarks.races import Races, race
from benchmarks.report import Announcer, Check, Report, Row, command_line
from benchmarks.rollbacks import Rollbacks, Stream, measure, register, serving
from benchmarks.served_package import build
from common.home import Home
from components.export.export import runtime_options
from components.export.settings import DecodingSettings, ExportSettings
from serving.package.builder import build_package
from serving.package.manifest import read_manifest
from serving.release.verification import Verification, verify_audit_log

_CLIENTS = 4
_PAUSE_S = 0.2
_PROMOTERS = 20


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    rollbacks: int = 10
    rollbacks_saturated: int = 5
    rounds: int = 50
    """Of the race; each is twenty attempts."""
    tests: experiments.Amount = field(default_factory=experiments.Amount)
    """Of A/B under no difference: `null_tests`, each of so many `users`."""


QUICK = Amount(rollbacks=3, rollbacks_saturated=1, rounds=10, tests=experiments.QUICK)


def run(
    console: Console,
    file: Path | None,
    amount: Amount | None = None,
    packages: Callable[[Home], tuple[str, str]] | None = None,
) -> bool:
    """Measure, print, write `file`; whether every bound holds. `packages` builds two packages in a home, in the place of
    those of the kept checkpoint, and returns their digests."""
    amount = amount or Amount()
    report = Report("release", command_line(), columns=("largest_ms", "stopped"))
    announce = Announcer(console)
    with TemporaryDirectory(prefix="emuflow-release-") as folder:
        home = Home(Path(folder) / "runs")
        announce("packaging two models")
        old, new = (packages or _default_packages)(home)
        register(home, old, new)
        with serving(home) as state:
            announce(f"{amount.rollbacks} rollbacks while {_CLIENTS} clients ask")
            asked = Stream(state.grpc_endpoint, _CLIENTS, _PAUSE_S)
            rollbacks = measure(home, asked, old, new, rollbacks=amount.rollbacks)
            announce(f"{amount.rollbacks_saturated} rollbacks while they ask without a pause")
            busy = Stream(state.grpc_endpoint, _CLIENTS, 0)
            saturated = measure(home, busy, old, new, rollbacks=amount.rollbacks_saturated)
        logs = [verify_audit_log(home.release_url, home.keys)]
        announce(f"{_PROMOTERS} promoters race in {amount.rounds} rounds")
        arena = f"sqlite:///{Path(folder) / 'races.db'}"
        races = race(arena, home.keys, promoters=_PROMOTERS, rounds=amount.rounds)
        logs.append(verify_audit_log(arena, home.keys))
    announce(f"{amount.tests.null_tests} tests of A/B without a difference")
    null = experiments.null_row(experiments.PROMISE, NewUsers(amount.tests.users), amount.tests.null_tests)
    report.rows += [*rows(rollbacks, saturated, races), null]
    report.checks += [*checks(rollbacks, saturated, races, logs), experiments.false_stop_check(null)]
    report.notes |= {
        "clients": _CLIENTS,
        "promoters": _PROMOTERS,
        "request_errors": [*rollbacks.errors, *saturated.errors][:20],
        "race_errors": races.errors[:20],
        "findings": [asdict(finding) for log in logs for finding in log.findings][:20],
    }
    return report.finish(console, file)


def rows(rollbacks: Rollbacks, saturated: Rollbacks, races: Races) -> list[Row]:
    return [
        _row("rollback, until the old version answers", rollbacks.answered_s),
        _row("rollback, until the command ends", rollbacks.ended_s),
        _row("rollback of a saturated server, until it answers", saturated.answered_s),
        Row("race, an attempt", 1000 * races.seconds / races.attempts, n=races.attempts),
    ]


def checks(rollbacks: Rollbacks, saturated: Rollbacks, races: Races, logs: list[Verification]) -> list[Check]:
    findings, entries = sum(len(log.findings) for log in logs), sum(log.entries for log in logs)
    failed = sum(len(each.errors) + each.late for each in (rollbacks, saturated))
    requests = rollbacks.requests + saturated.requests
    return [
        Check("rollback_seconds", max(rollbacks.answered_s), 10, 2, len(rollbacks.answered_s), at_least=False),
        Check("rollback_failed_requests", failed, 0, 0, requests, at_least=False),
        Check("promotion_races_lost", races.lost, 0, 0, races.attempts, at_least=False),
        Check("audit_findings", findings, 0, 0, entries, at_least=False),
    ]


def _row(name: str, seconds: list[float]) -> Row:
    times_ms = 1000 * np.array(seconds)
    more = {"largest_ms": float(times_ms.max())}
    return Row(name, float(np.median(times_ms)), float(np.quantile(times_ms, 0.95)), n=len(times_ms), more=more)


def _default_packages(home: Home) -> tuple[str, str]:
    """The same engine twice: the second one draws its sketch in two steps."""
    settings = ExportSettings()
    first = build("progressive", "int8", DecodingSettings(), settings, home.root, home.keys)
    second, _ = build_package(
        home.root / "engine",
        "int8",
        decoding=asdict(DecodingSettings(coarse_steps=2).options()),
        runtime=runtime_options(settings),
        provenance=read_manifest(first).provenance,
        key_folder=home.keys,
        package_store=home.packages,
    )
    return first.name, second.name

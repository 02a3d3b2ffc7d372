"""`emuflow canary`, for the command line: which package, which experiment, what is proven so far."""

import getpass
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import UsageError
from common.home import Home
from pipelines.connection import Connection, no_experiments, reaching_release_store
from pipelines.parent import current_champion
from pipelines.releasing import connect_released, package_of, settings_of
from serving.release.experiments.experiment import CANARY_ARM

if TYPE_CHECKING:
    from serving.release.experiments.canary import Canary
    from serving.release.experiments.states import ExperimentStore, Record


@dataclass(frozen=True)
class CanaryReport:
    """An experiment as it is after a look, plainly counted beside what is proven."""

    record: "Record"
    changed: bool
    """Whether this look changed it."""
    arms: list[dict[str, Any]]
    """Of each arm: name, digest, status, share, served, users, requests, errors, mean_latency_ms, good and bad votes."""
    findings: list[dict[str, Any]]
    """Metric by metric: verdict, effect with its bounds, margin, users."""

    def describe(self) -> dict[str, Any]:
        """For programs."""
        about = {name: getattr(self.record, name) for name in ("sequence", "actor", "reason", "time")}
        return {"name": self.record.experiment.name, **about, "arms": self.arms, "findings": self.findings}


def start(home: Home, version: str, name: str | None, reason: str) -> "Record":
    """Begin a canary of `version`, under `name` or the beginning of its digest. Errors as in `start_canary`."""
    from components.promote.canary import start_canary

    connection = connect_released(home)
    digest = package_of(home, version, connection)
    with reaching_release_store(connection.release_url):
        return start_canary(
            settings_of(home, digest),
            digest,
            name=name or digest[:12],
            actor=getpass.getuser(),
            reason=reason,
            release_url=connection.release_url,
            experiments_url=connection.experiments_url,
        )


def look(home: Home, name: str | None) -> CanaryReport:
    """Evaluate the experiment `name` (the one that changed last) as of now, act on what is proven, and tell.

    Raises `UsageError` where there is none.
    """
    from dataclasses import asdict

    from serving.release.experiments.canary import Canary
    from serving.release.experiments.evaluation import evaluate
    from serving.release.experiments.events import EventStore

    with _experiments(home) as (states, connection):
        name = name or _last(states)
        events = EventStore(connection.experiments_url)
        try:
            seen = Canary(states, events, name, champion=lambda: current_champion(connection.release_url)).look()
            experiment = seen.record.experiment
            counted = {summary.arm: asdict(summary) for summary in events.summary(name)}
            arms = [arm.model_dump(include={"name", "digest", "status", "share", "served"}) for arm in experiment.arms]
            found = [
                evaluate(events, experiment, arm, time.time())
                for arm in experiment.challengers
                if arm.status != "stopped"
            ]
        finally:
            events.close()
    findings = [finding.describe() for evaluation in found for finding in evaluation.findings]
    return CanaryReport(seen.record, seen.changed, [arm | counted.get(arm["name"], {}) for arm in arms], findings)


def set_share(home: Home, name: str, share: float, reason: str) -> "Record":
    """Another share of the users, by a person's decision."""
    return _decide(home, name, lambda canary, actor: canary.set_share(CANARY_ARM, share, actor=actor, reason=reason))


def stop(home: Home, name: str, reason: str) -> "Record":
    """No users any more, by a person's decision."""
    return _decide(home, name, lambda canary, actor: canary.stop(CANARY_ARM, actor=actor, reason=reason))


def wanted_canary(home: Home, connection: Connection) -> str | None:
    """The digest of the package that some users are sent to now beside the champion; `None` where there is none."""
    from components.promote.canary import experiments
    from serving.release.experiments.pairs import active_canary

    if no_experiments(home, connection):
        return None
    with experiments(connection.experiments_url) as states:
        active = active_canary(states.newest())
    return active.experiment.arm(CANARY_ARM).digest if active else None


def experiments_url(home: Home, connection: Connection) -> str | None:
    """Where the experiments are; `None` where there never was one."""
    return None if no_experiments(home, connection) else connection.experiments_url


def _decide(home: Home, name: str, act: "Callable[[Canary, str], Record]") -> "Record":
    from serving.release.experiments.canary import Canary
    from serving.release.experiments.events import EventStore

    with _experiments(home) as (states, connection):
        events = EventStore(connection.experiments_url)
        try:
            return act(Canary(states, events, name), getpass.getuser())
        finally:
            events.close()


@contextmanager
def _experiments(home: Home) -> "Iterator[tuple[ExperimentStore, Connection]]":
    from components.promote.canary import experiments

    connection = connect_released(home)
    if no_experiments(home, connection):
        raise UsageError("no canary was started here", where=str(home.root), fix="emuflow canary start VERSION")
    with reaching_release_store(connection.experiments_url), experiments(connection.experiments_url) as states:
        yield states, connection


def _last(states: "ExperimentStore") -> str:
    newest = states.newest()
    if not newest:
        raise UsageError("no canary was started here", fix="emuflow canary start VERSION")
    return newest[0].experiment.name

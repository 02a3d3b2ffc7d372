"""The loop behind `emuflow serve`: a server that follows what is desired, and comes back when it dies or stands still.

Once a package serves, nothing that fails around it ends it: where the release database cannot be asked, what was
wanted last is wanted still, and a package that cannot be served is tried again later.
"""

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from common.errors import EmuflowError, ServerError
from common.redaction import redact_text
from serving.backoff import Backoff, Refusals
from serving.canary import CanaryModel, Tell, Wanted
from serving.deployment import (
    PRODUCTION_NAME,
    EmbeddedDeployment,
    ServingState,
    locked,
    only_server,
    read_state,
    remove_state,
    write_state,
)
from serving.desire import Desire
from serving.health import Health
from serving.server import Ports, TritonServer

_MAX_RESTARTS = 5
_RESTART_WINDOW_S = 600.0
_DEATH_S = 10.0
"""The guard of a server that died is gone by then."""

log = logging.getLogger(__name__)


def serve(
    *,
    folder: Path,
    package_store: Path,
    key_folder: Path,
    desired: Callable[[], str | None],
    stop: threading.Event,
    canary: Wanted | None = None,
    canary_served: Tell | None = None,
    follows_champion: bool = True,
    ports: Ports | None = None,
    poll_s: float = 2.0,
    stop_grace_s: float = 5.0,
    stalled_after_s: float = 60.0,
    load_timeout_s: float = 120.0,
    retry: Backoff | None = None,
    on_change: Callable[[ServingState], None] | None = None,
) -> None:
    """Serve what `desired()` names until `stop` is set: load it, follow its changes, restart a server that died, or
    of which a copy of the model has not answered, or not moved, for `stalled_after_s` seconds.

    The first package must be named and load: whatever `desired` raises, `SignatureError` and `ServerError` reach the
    caller. After that, a failure of `desired` is logged, and a package that cannot be loaded is tried again after
    pauses (`retry`) while the old one serves on; one that the server died of, or whose load has not ended after
    `load_timeout_s` seconds, is not, as long as it stays the desired one: after the latter the server is started again,
    as only then it is known what serves. A server that dies again soon, or does not start, is started after the same
    pauses. Raises `ServerError` where it would have to be for the sixth time within ten minutes.

    `canary` names a package that is to be served beside it as the model `canary`, or none; what fails about that one is
    logged and changes nothing for the other. `canary_served` is told which package it is now, or none, and must return at
    once. `follows_champion` says whether promotions reach this server. At the end,
    requests have `stop_grace_s` to finish.
    `on_change` is told whenever another package, or a restarted server, serves.
    """
    first = desired()
    if first is None:
        raise ServerError("there is nothing to serve: no package is desired", fix="run the pipeline: emuflow run")
    server = TritonServer(folder, key_folder, ports=ports, load_timeout_s=load_timeout_s, stop_grace_s=stop_grace_s)
    retry = retry or Backoff()

    def start() -> None:
        _start(server, folder, key_folder, follows_champion)

    with only_server(folder):
        start()
        try:
            deployment = EmbeddedDeployment(folder, package_store, load_timeout_s=load_timeout_s)
            deployment.reconcile(first)
            told = on_change or _tell_nobody
            health = Health(lambda: server.grpc_endpoint, PRODUCTION_NAME, stalled_after_s=stalled_after_s)
            supervisor = _Supervisor(server, start, deployment, folder, desired, first, retry, told, health)
            if canary is not None:
                lost = supervisor.server_is_lost
                supervisor.canary = CanaryModel(server, package_store, canary, retry, lost, tell=canary_served)
            supervisor.tell()
            while not stop.wait(poll_s):
                supervisor.check()
        finally:
            server.stop()
            remove_state(folder)


class _Supervisor:
    """One server after its first package serves."""

    def __init__(
        self,
        server: TritonServer,
        start: Callable[[], None],
        deployment: EmbeddedDeployment,
        folder: Path,
        desired: Callable[[], str | None],
        first: str,
        retry: Backoff,
        on_change: Callable[[ServingState], None],
        health: Health,
    ):
        self._server, self._start, self._deployment, self._folder = server, start, deployment, folder
        self._desire, self._refusals, self._on_change = Desire(desired, first), Refusals(retry), on_change
        self._health, self._served = health, first
        self._retry = retry
        self._restarts: list[float] = []
        self._pauses = False
        self._told: ServingState | None = None
        self.canary: CanaryModel | None = None

    def check(self) -> None:
        """Put right what is not as it should be. Raises `ServerError` where the server dies again and again."""
        if not self._server.alive:
            self._restart("died")
        elif (package := self._stuck_on()) is not None:
            if package != self._served:
                self._refusals.ban(package)
            self._restart(f"has not ended the load of package {package}")
        elif (still_s := self._health.still_s()) is not None:
            self._restart(f"has stood still for {still_s:.0f} s, or a copy of its model has")
        self._ask()
        self._follow()
        self.tell()
        if self.canary is not None and self._server.alive:
            self.canary.check()

    def tell(self) -> None:
        """Tell `on_change` what changed, through this process or another."""
        state = read_state(self._folder)
        if state is None or state.digest is None or state == self._told:
            return
        self._told = state
        self._served = state.digest
        self._on_change(state)

    def _restart(self, what: str) -> None:
        now = time.monotonic()
        self._restarts = [at for at in self._restarts if now - at < _RESTART_WINDOW_S]
        times = len(self._restarts)
        if times == _MAX_RESTARTS:
            raise ServerError(
                f"the server {what}, and was started again {_MAX_RESTARTS} times within {_RESTART_WINDOW_S:g} s",
                where=str(self._server.log_file),
            )
        pause_s = self._restarts[-1] + self._retry.pause_s(times) - now if self._restarts else 0.0
        if pause_s > 0:
            if not self._pauses:
                log.error("the server %s; it is started again in %.0f s", what, pause_s)
            self._pauses = True
            return
        self._pauses = False
        self._restarts.append(now)
        log.error("the server %s; starting it again (%d of %d)", what, times + 1, _MAX_RESTARTS)
        self._server.stop()
        if self.canary is not None:
            self.canary.forget()
        try:
            self._start_again()
        except EmuflowError as error:
            if times + 1 == _MAX_RESTARTS:
                raise
            log.error("it did not start: %s", redact_text(str(error)))
        self._health.begin()

    def _start_again(self) -> None:
        try:
            self._start()
        except (OSError, psutil.Error) as error:
            raise ServerError(f"the server cannot be started: {error}", where=str(self._folder)) from error

    def _ask(self) -> None:
        if self._desire.refresh():
            self._refusals.keep((self._desire.digest, self._served))

    def _follow(self) -> None:
        state = self._deployment.state()
        if state is None or state.stuck_on is not None:
            return
        if state.digest is None:  # a restarted server, a promotion that broke off, an unloaded model: first what served
            self._try(self._served)
        if state.digest != self._desire.digest:
            self._try(self._desire.digest)

    def _try(self, digest: str) -> None:
        if not (self._refusals.due(digest) and self._server.answers):
            return
        try:
            self._deployment.reconcile(digest)
        except Exception as error:  # noqa: BLE001 - a full disk, a damaged package: what serves must go on
            self._refuse(digest, redact_text(str(error)))
        else:
            self._refusals.forget(digest)

    def _refuse(self, digest: str, reason: str) -> None:
        if digest != self._served and self.server_is_lost():
            self._refusals.ban(digest)
            log.error("package %s is not tried again, the server is lost to it: %s", digest, reason)
        else:
            pause_s = self._refusals.add(digest)
            log.error("package %s is not served, the next try is in %g s: %s", digest, pause_s, reason)

    def server_is_lost(self) -> bool:
        """Whether the server is gone, or does not end a load; one that is only too busy to answer at once is not."""
        deadline = time.monotonic() + _DEATH_S
        while self._server.alive and not self._server.answers and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self._server.alive or self._stuck_on() is not None

    def _stuck_on(self) -> str | None:
        """The package whose load has not ended in time, be it the canary, or one that another process has loaded."""
        state = read_state(self._folder)
        return self._server.stuck_on or (state.stuck_on if state else None)


def _tell_nobody(state: ServingState) -> None:
    """The default of `on_change`."""


def _start(server: TritonServer, folder: Path, key_folder: Path, follows_champion: bool) -> None:
    with locked(folder):
        if read_state(folder) is not None:
            raise ServerError("a server runs here already", where=str(folder), fix="stop the other 'emuflow serve'")
        server.start()
        ports = server.ports
        state = ServingState(
            pid=server.pid,
            started_at=psutil.Process(server.pid).create_time(),
            http_port=ports.http,
            grpc_port=ports.grpc,
            metrics_port=ports.metrics,
            key_folder=str(key_folder.resolve()),
            digest=None,
            follows_champion=follows_champion,
        )
        write_state(folder, state)

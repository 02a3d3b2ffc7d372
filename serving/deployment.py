"""Makes what is served follow what is desired.

Promotion writes the desired digest into the release store; a `Deployment` is reconciled to it. The embedded one
serves from a Triton child of `emuflow serve`; its state file lets another process (a promotion) reconcile it too.
"""

import fcntl
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import psutil

from common.errors import EmuflowError, ServerError
from common.files import read_json, write_json
from serving.control import ModelControl
from serving.repository import ModelRepository
from serving.server import HOST, Ports, TritonServer

PRODUCTION_NAME = "generator"
_STATE_NAME = "state.json"
_MAX_RESTARTS = 5

log = logging.getLogger(__name__)


class Deployment(Protocol):
    """Something that serves one package at a time."""

    def reconcile(self, desired_digest: str) -> bool:
        """Serve the package `desired_digest`; returns whether anything changed.

        Raises `SignatureError` or `ServerError` where it cannot; what served before then still serves.
        """
        ...


@dataclass(frozen=True)
class ServingState:
    """What the state file of a running embedded server holds."""

    pid: int
    """Process id of the server's guard, and when it started: a later process of the same id is another one."""
    started_at: float
    http_port: int
    grpc_port: int
    metrics_port: int
    key_folder: str
    digest: str | None
    """The package that serves; `None` before the first load."""

    @property
    def grpc_endpoint(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def running(self) -> bool:
        try:
            return psutil.Process(self.pid).create_time() == self.started_at
        except psutil.NoSuchProcess:
            return False


def read_state(folder: Path) -> ServingState | None:
    """The state of the server that runs in `folder` (home.serving), or `None` where none runs."""
    path = folder / _STATE_NAME
    if not path.is_file():
        return None
    state = ServingState(**read_json(path))
    return state if state.running else None


class EmbeddedDeployment:
    """The running embedded server of a serving folder, from whichever process."""

    def __init__(self, folder: Path, package_store: Path, *, load_timeout_s: float = 120.0):
        self._folder, self._package_store, self._load_timeout_s = folder, package_store, load_timeout_s

    def reconcile(self, desired_digest: str) -> bool:
        with _locked(self._folder):
            state = read_state(self._folder)
            if state is None:
                raise ServerError("no server runs here", where=str(self._folder), fix="start it: emuflow serve")
            if state.digest == desired_digest:
                return False
            repository = ModelRepository(self._folder / "repository", Path(state.key_folder))
            package = self._package_store / desired_digest
            with repository.replacing(package, PRODUCTION_NAME, expected_digest=desired_digest):
                ModelControl(state.grpc_endpoint, timeout_s=self._load_timeout_s).load(PRODUCTION_NAME)
            write_json(self._folder / _STATE_NAME, asdict(state) | {"digest": desired_digest})
            return True


def reconcile_if_running(folder: Path, package_store: Path, digest: str) -> bool:
    """Make the server of `folder` serve `digest`, if one runs; returns whether one runs.

    Raises `SignatureError` or `ServerError` where the package cannot be loaded; the old one then still serves.
    """
    if read_state(folder) is None:
        return False
    EmbeddedDeployment(folder, package_store).reconcile(digest)
    return True


def serve(
    *,
    folder: Path,
    package_store: Path,
    key_folder: Path,
    desired: Callable[[], str | None],
    stop: threading.Event,
    ports: Ports | None = None,
    poll_s: float = 2.0,
    stop_grace_s: float = 5.0,
    on_change: Callable[[ServingState], None] | None = None,
) -> None:
    """Serve what `desired()` names until `stop` is set: load it, follow its changes, restart a server that died.

    The first package must load (`SignatureError`, `ServerError`); a later one that cannot is logged and left, and
    the old one serves on. At the end, requests have `stop_grace_s` to finish. `on_change` is told whenever another package, or a restarted server, serves.
    """
    first = desired()
    if first is None:
        raise ServerError("there is nothing to serve: no package is desired", fix="run the pipeline: emuflow run")
    server = TritonServer(folder, key_folder, ports=ports, stop_grace_s=stop_grace_s)
    deployment = EmbeddedDeployment(folder, package_store)
    _start(server, folder, key_folder)
    try:
        deployment.reconcile(first)
        _keep_serving(server, deployment, folder, key_folder, desired, stop, poll_s, on_change or _tell_nobody)
    finally:
        server.stop()
        (folder / _STATE_NAME).unlink(missing_ok=True)


def _keep_serving(
    server: TritonServer,
    deployment: EmbeddedDeployment,
    folder: Path,
    key_folder: Path,
    desired: Callable[[], str | None],
    stop: threading.Event,
    poll_s: float,
    on_change: Callable[[ServingState], None],
) -> None:
    told: ServingState | None = None
    refused: str | None = None
    restarts = 0
    while True:
        state = read_state(folder) or told
        if state is not None and state != told:
            on_change(state)
            told = state
        if stop.wait(poll_s):
            return
        if not server.alive:
            restarts += 1
            if restarts > _MAX_RESTARTS:
                raise ServerError(f"the server died {restarts} times", where=str(server.log_file))
            log.error("the server died; starting it again (%d of %d)", restarts, _MAX_RESTARTS)
            server.stop()
            _start(server, folder, key_folder)
            if told is not None and told.digest is not None:
                deployment.reconcile(told.digest)
        refused = _follow(deployment, desired(), refused)


def _tell_nobody(state: ServingState) -> None:
    """The default of `on_change`."""


def _follow(deployment: Deployment, wanted: str | None, refused: str | None) -> str | None:
    """Reconcile to `wanted` unless it was refused before; returns the digest that is refused now."""
    if wanted is None or wanted == refused:
        return refused
    try:
        deployment.reconcile(wanted)
    except EmuflowError as error:
        log.error("package %s is not served, the one before stays: %s", wanted, error)
        return wanted
    return None


def _start(server: TritonServer, folder: Path, key_folder: Path) -> None:
    with _locked(folder):
        if read_state(folder) is not None:
            raise ServerError("a server runs here already", where=str(folder), fix="stop the other 'emuflow serve'")
        server.start()
        started_at = psutil.Process(server.pid).create_time()
        ports = server.ports
        state = ServingState(
            server.pid, started_at, ports.http, ports.grpc, ports.metrics, str(key_folder.resolve()), digest=None
        )
        write_json(folder / _STATE_NAME, asdict(state))


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time changes what this folder serves."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

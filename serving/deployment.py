"""Makes what is served follow what is desired.

Promotion writes the desired digest into the release store; a `Deployment` is reconciled to it. The embedded one
serves from a Triton child of `emuflow serve` (`serving/supervisor.py`); its state file lets another process (a
promotion) reconcile it too.
"""

import fcntl
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, Protocol

import psutil

from common.errors import ServerError, SignatureError
from common.files import read_json, write_json
from serving.control import LoadTimeout, ModelControl
from serving.control_key import key_of
from serving.repository import ModelRepository
from serving.server import HOST

PRODUCTION_NAME = "generator"
log = logging.getLogger(__name__)
Reconciled = Literal["not running", "updated", "left as it was"]
_STATE_NAME, _SERVER_LOCK_NAME = "state.json", "server.lock"
_LOOK_S = 1.0
"""For whether a model is loaded: a server that does not say so at once is asked again later."""


def network_of_this_process() -> str:
    """Names the network that this process is in: a container's loopback is not that of the machine."""
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return "unknown"


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
    """The package that serves; `None` before the first load, and while another one takes its place."""
    follows_champion: bool = True
    """Whether a promotion is to reach it. One that was started for a package of its own keeps that."""
    network: str = field(default_factory=network_of_this_process)
    """Where its ports are on the loopback."""
    stuck_on: str | None = None
    """A package whose load did not end in time: what serves is not known until `emuflow serve` has started the server
    again, and nothing else is loaded before."""

    @property
    def grpc_endpoint(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def reachable(self) -> bool:
        """Whether this process can talk to it; one in another container follows by itself."""
        return self.network == network_of_this_process()

    @property
    def process_runs(self) -> bool:
        try:
            return psutil.Process(self.pid).create_time() == self.started_at
        except psutil.NoSuchProcess:
            return False


def read_state(folder: Path) -> ServingState | None:
    """The state of the server that runs in `folder` (home.serving), or `None` where none runs.

    Its process id means something only in its own container: for one in another, the lock that it holds tells.
    """
    path = folder / _STATE_NAME
    if not path.is_file():
        return None
    state = ServingState(**read_json(path))
    runs = state.process_runs if state.reachable else _server_is_held(folder)
    return state if runs else None


def write_state(folder: Path, state: ServingState) -> None:
    """Publish the state of the server that runs in `folder`. Only while it is `locked`."""
    write_json(folder / _STATE_NAME, asdict(state))


def remove_state(folder: Path) -> None:
    """Remove the state of a server that has ended; another one's, that runs by now, stays."""
    if read_state(folder) is None:
        (folder / _STATE_NAME).unlink(missing_ok=True)


class EmbeddedDeployment:
    """The running embedded server of a serving folder, from whichever process of the user who started it."""

    def __init__(self, folder: Path, package_store: Path, *, load_timeout_s: float = 120.0):
        self._folder, self._package_store, self._load_timeout_s = folder, package_store, load_timeout_s

    def reconcile(self, desired_digest: str) -> bool:
        """As every `Deployment`; a package that serves by its state and was unloaded is loaded again.

        Raises `LoadTimeout` where the load has not ended in time: the state then says so, and the server is started again.
        """
        return self.follow(lambda: desired_digest)

    def follow(self, desired: Callable[[], str]) -> bool:
        """As `reconcile`, to the digest that `desired` gives once no other process changes what is served: one that was
        asked for before may have been overtaken by a later decision, which serves already."""
        with locked(self._folder):
            state = self._compared(read_state(self._folder))
            if state is None or not state.reachable:
                raise ServerError("no server runs here", where=str(self._folder), fix="start it: emuflow serve")
            if state.stuck_on is not None:
                raise ServerError(
                    f"the server has not ended the load of package {state.stuck_on}",
                    where=str(self._folder),
                    fix="'emuflow serve' starts it again within seconds, and follows the champion by itself then",
                )
            digest = desired()
            if state.digest == digest:
                return False
            self._replace(state, digest)
            return True

    def state(self) -> ServingState | None:
        """The server's state, which names no package where the server has none; `None` where no server runs."""
        with locked(self._folder):  # not while a promotion changes what is served
            return self._compared(read_state(self._folder))

    def _replace(self, state: ServingState, digest: str) -> None:
        repository = ModelRepository(self._folder / "repository", Path(state.key_folder))
        control = ModelControl(state.grpc_endpoint, key=key_of(self._folder), timeout_s=self._load_timeout_s)
        # Whoever finds this process killed from here on must not believe that the old package serves.
        unknown = replace(state, digest=None)
        try:
            if not (state.digest is None and self._settle(repository, control) == digest):
                with repository.replacing(self._package_store / digest, PRODUCTION_NAME, expected_digest=digest):
                    write_state(self._folder, unknown)
                    control.load(PRODUCTION_NAME)
        except LoadTimeout:
            write_state(self._folder, replace(unknown, stuck_on=digest))
            raise
        except Exception:
            write_state(self._folder, state)
            raise
        write_state(self._folder, replace(state, digest=digest))

    def _settle(self, repository: ModelRepository, control: ModelControl) -> str | None:
        """Load what stands in the repository; its digest, or `None` where that is nothing, nothing that can be loaded, or
        not what was signed.

        A process that was ended may have left a load under way, whose files must not be moved before it is over: Triton
        takes another load of the same model after it alone, and an unload, too.
        """
        try:
            manifest = repository.verified(PRODUCTION_NAME)
        except SignatureError as error:
            log.error("what stands in the repository is not loaded, and what was loaded from it is unloaded: %s", error)
            control.begin_unload(PRODUCTION_NAME).wait(control.timeout_s)
            return None
        if manifest is None:
            return None
        try:
            control.load(PRODUCTION_NAME)
        except LoadTimeout:
            raise
        except ServerError:
            return None
        return manifest.digest

    def _compared(self, state: ServingState | None) -> ServingState | None:
        """`state` after a look at the server: a model that was unloaded, by whomever, is served no more."""
        if state is None or state.digest is None or not state.reachable:
            return state
        try:
            if ModelControl(state.grpc_endpoint, timeout_s=_LOOK_S).is_ready(PRODUCTION_NAME):
                return state
        except ServerError:  # it is dead, or busy: others watch that
            return state
        log.error("the server has the model '%s' no more", PRODUCTION_NAME)
        state = replace(state, digest=None)
        write_state(self._folder, state)
        return state


def reconcile_if_running(folder: Path, package_store: Path, champion: str) -> Reconciled:
    """`follow_if_running` where nobody else decides meanwhile which package is the champion."""
    return follow_if_running(folder, package_store, lambda: champion)


def follow_if_running(folder: Path, package_store: Path, champion: Callable[[], str]) -> Reconciled:
    """Make the server of `folder` serve the champion, if one runs and follows it; which one that is is asked once no other
    process changes what is served.

    Returns `left as it was` where it was started for a package of its own, or runs in another container: it asks for
    the champion itself then. Raises `SignatureError` or `ServerError` where the champion cannot be loaded; the old package
    then still serves.
    """
    state = read_state(folder)
    if state is None:
        return "not running"
    if not (state.follows_champion and state.reachable):
        return "left as it was"
    EmbeddedDeployment(folder, package_store).follow(champion)
    return "updated"


@contextmanager
def only_server(folder: Path) -> Iterator[None]:
    """Hold `folder` for one server, however many containers see it. Raises `ServerError` where another one has it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / _SERVER_LOCK_NAME).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ServerError(
                "a server runs here already", where=str(folder), fix="stop the other 'emuflow serve'"
            ) from None
        yield


def _server_is_held(folder: Path) -> bool:
    try:
        with only_server(folder):
            return False
    except ServerError:
        return True


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes what this folder serves."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

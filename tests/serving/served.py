"""`serve` in a thread, for tests."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from common.errors import EmuflowError
from emuflow_client import GeneratorClient, GeneratorError
from serving.backoff import Backoff
from serving.deployment import ServingState, read_state
from serving.supervisor import serve


class Served:
    """A running `serve`, the digest that it is to follow, or a function that says which (`ask`)."""

    def __init__(
        self,
        folder: Path,
        package_store: Path,
        key_folder: Path,
        desired: str,
        *,
        ask: Callable[[], str | None] | None = None,
        canary: Callable[[], str | None] | None = None,
        follows_champion: bool = True,
        stalled_after_s: float = 60,
        load_timeout_s: float = 120,
        retry: Backoff = Backoff(first_s=0.2, longest_s=0.5),  # noqa: B008 - it cannot be changed
    ):
        self.folder, self.package_store, self.desired = folder, package_store, desired
        self.changes: list[ServingState] = []
        self.error: EmuflowError | None = None
        """What ended it."""
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._serve,
            kwargs={
                "folder": folder,
                "package_store": package_store,
                "key_folder": key_folder,
                "desired": ask or (lambda: self.desired),
                "stop": self._stop,
                "canary": canary,
                "follows_champion": follows_champion,
                "poll_s": 0.1,
                "stop_grace_s": 0,
                "stalled_after_s": stalled_after_s,
                "load_timeout_s": load_timeout_s,
                "retry": retry,
                "on_change": self.changes.append,
            },
        )

    def _serve(self, **arguments: Any) -> None:
        try:
            serve(**arguments)
        except EmuflowError as error:
            self.error = error

    def version(self) -> str | None:
        """The digest of the package that answers now, or `None`."""
        state = read_state(self.folder)
        if state is None:
            return None
        try:
            with GeneratorClient(state.grpc_endpoint, timeout_s=5, retries=0) as client:
                return client.generate("a red seven").version
        except GeneratorError:
            return None

    def kill_server(self) -> int:
        """SIGKILL Triton; returns the process id of its guard."""
        state = read_state(self.folder)
        assert state is not None
        os.kill(psutil.Process(state.pid).children()[0].pid, signal.SIGKILL)
        return state.pid

    def processes(self) -> list[psutil.Process]:
        """Triton's guard, Triton, and the processes of its Python models, in this order."""
        state = read_state(self.folder)
        assert state is not None
        guard = psutil.Process(state.pid)
        return [guard, *guard.children(), *(stub for server in guard.children() for stub in server.children())]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()


def eventually(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)

"""Rollbacks by the command line, under a server that is asked all the time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from common.files import sha256_bytes
from common.home import Home
from components.ingest.digit_world.scenes import all_captions
from components.promote.registry import Evidence, Registry
from components.promote.settings import PromotionSettings
from emuflow_client import GeneratorClient, GeneratorError
from serving.deployment import ServingState, read_state, reconcile_if_running
from serving.release.store import ReleaseStore

_ROOT = Path(__file__).resolve().parent.parent
_START_S = 120.0
_ANSWER_S = 30.0


@dataclass(frozen=True)
class Answer:
    """One request: when it was sent and answered (`time.perf_counter`), and the package that drew the image."""

    asked: float
    answered: float
    version: str


@dataclass
class Stream:
    """Clients that ask until they are stopped; each waits `pause_s` between an answer and its next question."""

    endpoint: str
    clients: int
    pause_s: float
    answers: list[Answer] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        stop = threading.Event()
        threads = [threading.Thread(target=self._ask, args=(stop, number)) for number in range(self.clients)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()

    def first(self, version: str, since: float, timeout_s: float = _ANSWER_S) -> Answer:
        """The first answer of `version` after the moment `since`; waits for it. Raises `TimeoutError`."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = [answer for answer in list(self.answers) if answer.version == version and answer.answered > since]
            if found:
                return min(found, key=lambda answer: answer.answered)
            time.sleep(0.01)
        raise TimeoutError(f"no answer came from package {version} within {timeout_s:g} s")

    def _ask(self, stop: threading.Event, number: int) -> None:
        captions, turn = all_captions(), number
        with GeneratorClient(self.endpoint, timeout_s=_ANSWER_S, retries=0) as client:
            while not stop.is_set():
                asked = time.perf_counter()
                try:
                    version = client.generate(captions[turn % len(captions)], seed=turn).version
                    self.answers.append(Answer(asked, time.perf_counter(), version))
                except GeneratorError as error:
                    self.errors.append(str(error))
                turn += self.clients
                stop.wait(self.pause_s)


@dataclass
class Rollbacks:
    """What was measured of each rollback, in seconds from the start of the command."""

    answered_s: list[float] = field(default_factory=list)
    """Until the first answer of the package that was put back."""
    ended_s: list[float] = field(default_factory=list)
    """Until the command ended: by then MLflow's alias has followed, too."""
    late: int = 0
    """Requests that were sent after the end of the command, and drawn by the package that was taken away."""
    requests: int = 0
    errors: list[str] = field(default_factory=list)


def measure(home: Home, stream: Stream, old: str, new: str, *, rollbacks: int) -> Rollbacks:
    """Promote package `new` over the champion `old` and roll back, so many times, while the `stream` asks the server."""
    measured = Rollbacks()
    with stream.running():
        for _ in range(rollbacks):
            _promote(home, new, old)
            reconcile_if_running(home.serving, home.packages, new)
            stream.first(new, time.perf_counter())
            _roll_back(home, stream, old, new, measured)
    measured.requests, measured.errors = len(stream.answers) + len(stream.errors), stream.errors
    return measured


def _roll_back(home: Home, stream: Stream, old: str, new: str, measured: Rollbacks) -> None:
    started = time.perf_counter()
    subprocess.run(_command(home, "rollback", "--why", "measured"), env=_environment(home), cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    ended = time.perf_counter()
    measured.answered_s.append(stream.first(old, started).answered - started)
    measured.ended_s.append(ended - started)
    stream.first(old, ended)
    measured.late += sum(answer.asked > ended and answer.version == new for answer in list(stream.answers))


def register(home: Home, old: str, new: str) -> None:
    """Register both packages in MLflow; `old` is the champion."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=home.tracking_uri, registry_uri=home.tracking_uri)
    experiment = client.create_experiment("emuflow", artifact_location=home.mlflow_artifacts.as_uri())
    run = client.create_run(experiment).info.run_id
    registry = Registry(PromotionSettings().registered_model, home.tracking_uri)
    for digest in (old, new):
        registry.register(Evidence(digest, sha256_bytes(digest.encode()), {}, {}), run)
    _promote(home, old, None)


def _promote(home: Home, digest: str, before: str | None) -> None:
    """With another evidence each time: a package that was rolled back needs new one."""
    store = ReleaseStore(home.release_url, home.keys)
    evidence = sha256_bytes(f"{digest} {time.time_ns()}".encode())
    store.promote(
        "champion", digest, expected_current=before, evidence_digest=evidence, actor="benchmark", reason="PASS"
    )
    store.close()


@contextmanager
def serving(home: Home) -> Iterator[ServingState]:
    """`emuflow serve` on that home, once it answers."""
    ports = [argument for name in ("grpc", "http", "metrics") for argument in (f"--{name}-port", "0")]
    log = (home.root / "serve.log").open("w")
    process = subprocess.Popen(
        _command(home, "serve", *ports), env=_environment(home), cwd=_ROOT, stdout=log, stderr=log
    )
    try:
        yield _started(home, process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
        log.close()


def _started(home: Home, process: subprocess.Popen) -> ServingState:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        state = read_state(home.serving)
        if state is not None and state.digest is not None:
            return state
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {(home.root / 'serve.log').read_text()[-2000:]}")


def _command(home: Home, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "pipelines.cli", *arguments, "--home", str(home.root)]


def _environment(home: Home) -> dict[str, str]:
    """No address of a team's own servers, which a variable may hold, is meant here."""
    return os.environ | {"MLFLOW_TRACKING_URI": home.tracking_uri, "EMUFLOW_RELEASE_URL": home.release_url}

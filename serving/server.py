"""An embedded Triton server: the real binary, as a child process of this one.

with TritonServer(folder, key_folder) as server:
    server.load(package_store / digest, "candidate", expected_digest=digest)
    GeneratorClient(server.grpc_endpoint, model="candidate").generate("a red seven")
"""

import contextlib
import http.client
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import ServerError
from serving.control import LoadTimeout, ModelControl
from serving.control_key import KEY_NAME, ControlKey
from serving.package.manifest import Manifest
from serving.repository import ModelRepository
from serving.triton import backends_folder, check_stub, find_installation, server_environment

HOST = "127.0.0.1"
_START_ATTEMPTS = 3
_LARGEST_LOG_BYTES = 16 << 20
"""A log that is larger when the server starts is put aside; the one that was put aside before goes."""
_CHECKOUT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Ports:
    """Ports of `host`, the loopback or `0.0.0.0` (every address, the loopback among them); 0 is any free one."""

    http: int = 0
    grpc: int = 0
    metrics: int = 0
    host: str = HOST

    def resolved(self) -> "Ports":
        """With a free port in place of each 0. Raises `ServerError` where a given port is in use."""
        with contextlib.ExitStack() as held:
            ports = (_free_port(self.host, port, held) for port in (self.http, self.grpc, self.metrics))
            return Ports(*ports, host=self.host)


class TritonServer:
    """One server with explicit model control. It ends with this process, even where this one is killed."""

    def __init__(
        self,
        folder: Path,
        key_folder: Path,
        *,
        ports: Ports | None = None,
        start_timeout_s: float = 60.0,
        load_timeout_s: float = 120.0,
        stop_grace_s: float = 5.0,
    ):
        """`folder` takes the model repository, `triton.log` and `control.key`, a new key to the model control at each start;
        `key_folder` holds the trusted public keys."""
        self.folder = folder
        self.repository = ModelRepository(folder / "repository", key_folder)
        self.log_file = folder / "triton.log"
        self.key_file = folder / KEY_NAME
        self._key: ControlKey | None = None
        self._asked_ports = ports or Ports()
        self._start_timeout_s, self._load_timeout_s, self._stop_grace_s = start_timeout_s, load_timeout_s, stop_grace_s
        self._process: subprocess.Popen | None = None
        self.ports = self._asked_ports
        self.stuck_on: str | None = None
        """Digest of a package whose load did not end in time: the server is to be started again."""

    def start(self) -> Self:
        """Start and wait until the server is ready. Raises `ServerError` with the end of the log."""
        self.repository.clear()
        self.stuck_on = None
        _put_aside(self.log_file)
        for attempt in range(1, _START_ATTEMPTS + 1):
            self.ports = self._asked_ports.resolved()
            self._process = self._spawn()
            try:
                self._wait_until_ready()
                return self
            except ServerError as error:
                self.stop()
                taken = "already in use" in str(error)  # another process took a free port before the server did
                if not taken or attempt == _START_ATTEMPTS:
                    raise
            except BaseException:
                self.stop()
                raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def stop(self) -> None:
        """End the server and its children (SIGTERM, then SIGKILL); does nothing where it does not run."""
        process, self._process = self._process, None
        if process is None:
            return
        self.key_file.unlink(missing_ok=True)
        assert process.stdin is not None, "the guard is started with a pipe"
        process.stdin.close()
        try:
            process.wait(self._stop_grace_s + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    @property
    def pid(self) -> int:
        """Process id of the server's guard: ending it ends the server."""
        if self._process is None:
            raise ServerError("the server does not run", where=str(self.folder))
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def answers(self) -> bool:
        """Whether the server itself answers now; `alive` still says so of its guard for a moment after its death."""
        return self.alive and _is_ready(self.ports.http)

    @property
    def grpc_endpoint(self) -> str:
        return f"{HOST}:{self.ports.grpc}"

    @property
    def control(self) -> ModelControl:
        return ModelControl(self.grpc_endpoint, key=self._key, timeout_s=self._load_timeout_s)

    def load(self, package: Path, name: str, *, expected_digest: str | None = None) -> Manifest:
        """Verify `package`, copy it under `name` and load it; returns when it has warmed up.

        Raises `SignatureError` or `ServerError`; what served under `name` before then still serves. After a `LoadTimeout`
        nobody knows what does, and the server takes no other package until it was started again.
        """
        if self.stuck_on is not None:
            raise ServerError(f"the load of package {self.stuck_on} has not ended", fix="start the server again")
        with self.repository.replacing(package, name, expected_digest=expected_digest) as manifest:
            try:
                self.control.load(name)
            except LoadTimeout:
                self.stuck_on = manifest.digest
                raise
        return manifest

    def unload(self, name: str) -> None:
        self.control.unload(name)
        self.repository.remove(name)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self) -> subprocess.Popen:
        installation = find_installation()
        check_stub(installation)
        self._key = ControlKey.new()
        self._key.write(self.key_file)
        shared_memory = f"emuflow_{uuid.uuid4().hex[:12]}_"
        command = [
            str(installation.binary),
            f"--model-repository={self.repository.models}",
            f"--backend-directory={backends_folder(installation)}",
            f"--backend-config=python,shm-region-prefix-name={shared_memory}",
            "--model-control-mode=explicit",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={max(1, int(self._stop_grace_s) - 1)}",
            *(f"--{service}-address={self.ports.host}" for service in ("http", "grpc", "metrics")),
            f"--http-port={self.ports.http}",
            f"--grpc-port={self.ports.grpc}",
            f"--metrics-port={self.ports.metrics}",
            *self._key.server_flags,
        ]
        guard = [sys.executable, "-m", "serving.guard", shared_memory, str(self._stop_grace_s)]
        environment = server_environment(installation) | {"PYTHONPATH": str(_CHECKOUT)}
        with self.log_file.open("ab") as log:
            return subprocess.Popen(
                [*guard, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,  # a terminal's Ctrl-C reaches the program, which then ends the server
            )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            if not self.alive:
                raise ServerError(f"the server ended while it started:\n{self._log_end()}", where=str(self.log_file))
            if _is_ready(self.ports.http):
                return
            time.sleep(0.02)
        raise ServerError(f"not ready after {self._start_timeout_s:g} s:\n{self._log_end()}", where=str(self.log_file))

    def _log_end(self) -> str:
        return self.log_file.read_bytes()[-2000:].decode(errors="replace")


def _put_aside(log_file: Path) -> None:
    if log_file.is_file() and log_file.stat().st_size > _LARGEST_LOG_BYTES:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))


def _free_port(host: str, port: int, held: contextlib.ExitStack) -> int:
    """`port`, or a free one for 0; held until all ports are chosen, so that no two are the same."""
    listener = held.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise ServerError(f"port {port} is already in use", fix="stop what uses it, or choose another port") from error
    return listener.getsockname()[1]


def _is_ready(http_port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, http_port, timeout=1)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()

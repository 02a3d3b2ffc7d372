"""Podman's Docker-compatible socket, for as long as a block runs."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from infra.images.engine import EngineError, call, engine_environment, find_engine, is_podman

_START_S = 20.0


@contextlib.contextmanager
def docker_socket(folder: Path) -> Iterator[str]:
    """The `DOCKER_HOST` of an engine that can start containers; `folder` takes podman's socket and configuration.

    Raises `EngineError` where there is none, with what the engine said.
    """
    engine = find_engine()
    if not is_podman(engine):
        call(engine, os.environ, "info")
        yield os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        return
    environment = engine_environment(engine, folder)
    socket = folder / "podman.sock"
    command = [engine, "system", "service", "--time=0", f"unix://{socket}"]
    with (folder / "podman.log").open("wb") as log:
        # In its own folder: where memory runs out, the monitor of a container leaves a file `oom` in the working directory.
        service = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_S
        while not socket.exists():
            if service.poll() is not None or time.monotonic() > deadline:
                raise EngineError(f"podman's service did not start: {(folder / 'podman.log').read_text()[-2000:]}")
            time.sleep(0.1)
        yield f"unix://{socket}"
    finally:
        service.terminate()
        try:
            service.wait(10)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()

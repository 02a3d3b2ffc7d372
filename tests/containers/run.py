"""Build the images and run the pipeline in them: `make test-containers`, or `python -m tests.containers.run`.

Exit codes: 0 passed, 77 skipped because no container can be started here (it says why), anything else failed.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from infra.images.build import LOGS, ROOT, base_image
from infra.images.build import main as build_images
from infra.images.engine import EngineError, call, engine_environment, find_engine
from tests.containers.service import docker_socket

SKIPPED = 77


def main(arguments: Sequence[str]) -> int:
    try:
        _try_engine()
    except EngineError as error:
        print(f"skipped: no container can be started here: {error}", flush=True)
        return SKIPPED
    started = time.monotonic()
    if build_images([]) != 0:
        return 1
    print(f"images: {time.monotonic() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory(prefix="emuflow-podman-") as folder, docker_socket(Path(folder)) as host:
        command = [sys.executable, "-m", "pytest", "-m", "containers", "--durations=0", "tests/containers", *arguments]
        code = subprocess.run(command, cwd=ROOT, env=os.environ | {"DOCKER_HOST": host}, check=False).returncode
    print(f"whole: {time.monotonic() - started:.0f} s", flush=True)
    return code


def _try_engine() -> None:
    """Start one container. Raises `EngineError` where this machine has no engine, no base, or may not start any."""
    engine = find_engine()
    environment = engine_environment(engine, LOGS)
    call(engine, environment, "info")
    call(engine, environment, "run", "--rm", "--network", "none", base_image(engine, environment), "true")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

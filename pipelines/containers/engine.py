"""The container engine: reaching it, and ending what a run left there."""

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import PlatformError

if TYPE_CHECKING:
    from docker import DockerClient

RUN_LABEL, HOME_LABEL = "emuflow.run", "emuflow.home"
_STOP_S = 5
_REMOVAL_TRIES = 3


@contextlib.contextmanager
def engine() -> Iterator["DockerClient"]:
    """A client for a block. Raises `PlatformError` where no engine answers."""
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env()
        client.ping()
    except (DockerException, OSError) as error:
        raise PlatformError(
            f"no container engine answers: {error}",
            where=os.environ.get("DOCKER_HOST", "/var/run/docker.sock"),
            fix="start Docker; or `podman system service --time=0 unix://SOCKET`, and DOCKER_HOST=unix://SOCKET",
        ) from None
    try:
        yield client
    finally:
        client.close()


def remove_containers(home: Path) -> None:
    """End and remove every container that a run of `home` left: one run at a time works there.

    Whatever stays is told on standard error, not raised: this is how a run ends, also one that failed.
    """
    import docker.errors

    try:
        with engine() as client:
            for _ in range(_REMOVAL_TRIES):
                left = client.containers.list(
                    all=True, ignore_removed=True, filters={"label": f"{HOME_LABEL}={home.resolve()}"}
                )
                if not left:
                    return
                for container in left:
                    with contextlib.suppress(docker.errors.DockerException, OSError):
                        container.stop(timeout=_STOP_S)
                    with contextlib.suppress(docker.errors.DockerException, OSError):
                        container.remove(force=True)
                time.sleep(0.2)
            _complain(f"containers are left: {', '.join(str(container.name) for container in left)}")
    except (PlatformError, docker.errors.DockerException, OSError) as error:
        _complain(f"the run's containers could not be removed: {error}")


def _complain(words: str) -> None:
    print(words, file=sys.stderr, flush=True)

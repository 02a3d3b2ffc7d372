"""What the tests of this folder share: the engine, the images, and runs of the same settings in and out of containers."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import docker
import pytest
from docker import DockerClient

from common.version import VERSION
from tests.pipelines.chain import Chain

IN_CONTAINERS = ("run", "--preset", "smoke", "--set", "platform.runner=containers")
IMAGES = {name: f"localhost/{name}:{VERSION}" for name in ("emuflow", "emuflow-triton")}
_LONGEST_COMMAND_S = 120


@pytest.fixture(scope="session")
def engine() -> Iterator[DockerClient]:
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("`make test-containers` builds the images, starts the engine's service and runs these")
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def containerised(engine: DockerClient, tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A home whose first run went through containers."""
    chain = Chain(tmp_path_factory.mktemp("containerised") / "runs")
    chain.call(*IN_CONTAINERS)
    return chain


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """A home whose first run had the same settings and no container."""
    chain = Chain(tmp_path_factory.mktemp("local") / "runs")
    chain.call("run", "--preset", "smoke")
    return chain


def output(engine: DockerClient, image: str, command: Sequence[str], **options: Any) -> str:
    """What a command prints in a container of its own, to its end.

    docker-py's `containers.run` follows the log, and podman's log is followed for ever where the end comes first.
    """
    container = engine.containers.create(image, list(command), **options)
    try:
        container.start()
        code = container.wait(timeout=_LONGEST_COMMAND_S)["StatusCode"]
        printed = container.logs(stderr=False).decode()
        assert code == 0, container.logs().decode()
        return printed
    finally:
        container.remove(force=True)


def containers_of_runs(engine: DockerClient) -> list[Any]:
    return engine.containers.list(all=True, filters={"label": "emuflow.run"})


def health_check(engine: DockerClient) -> list[str]:
    """The command with which the server's image tells its health."""
    container = engine.containers.create(IMAGES["emuflow-triton"])
    try:
        kind, *command = engine.api.inspect_container(container.id)["Config"]["Healthcheck"]["Test"]
    finally:
        container.remove(force=True)
    assert kind == "CMD"
    return command

"""The steps of a local run in containers, by Docker or by podman's Docker-compatible socket (`DOCKER_HOST`).

kfp's own container runner lets the engine remove a container as soon as it ends, and where that is quicker than the
question for its exit code, a failure counts as a success. Here a container is removed after its end has been read.
"""

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import PlatformError
from common.files import read_json, write_json
from components.step import STEP_IMAGE_VARIABLE
from pipelines.container_script import write_script
from pipelines.settings import ContainerSettings
from pipelines.steps import step_of_task

if TYPE_CHECKING:
    from docker import DockerClient
    from kfp.local import DockerRunner

RUN_LABEL = "emuflow.run"
IMAGE_VARIABLES = {"image": "EMUFLOW_IMAGE", "triton_image": "EMUFLOW_TRITON_IMAGE"}
USER = 10001
"""The user of the images, where the one who starts the run is root."""

_REVISION_LABEL = "org.opencontainers.image.revision"
_PASSED_ON = ("EMUFLOW_", "MLFLOW_", "OMP_")
_END_FILE, _LOG_FILE = "container.json", "container.log"
_STOP_S = 5
_SIGKILL = 137


@dataclass(frozen=True)
class ContainerEnd:
    """How the last container of a run ended, which its step may not have been able to write itself."""

    step: str
    exit_code: int
    out_of_memory: bool
    memory_limit: str | None

    @property
    def reason(self) -> str:
        """In words, empty where it ended well."""
        limit = f"limit: {self.memory_limit or 'what the machine has'}"
        if self.out_of_memory:
            return f"its container was killed for memory ({limit})"
        if self.exit_code == _SIGKILL:  # podman does not tell why with the first version of cgroups
            return f"its container was killed (SIGKILL), as the kernel does for memory ({limit})"
        return f"its container ended with exit code {self.exit_code}" if self.exit_code else ""


def settle_images(settings: ContainerSettings) -> None:
    """Put both images, by what they are at this moment (`name@sha256:…`), into the environment that the graph reads.

    Raises `PlatformError` where no engine answers or an image is absent and cannot be pulled.
    """
    import docker.errors

    with _engine() as client:
        for field, variable in IMAGE_VARIABLES.items():
            name = getattr(settings, field)
            try:
                image = client.images.get(name)
            except docker.errors.ImageNotFound:
                try:
                    image = client.images.pull(name)
                except docker.errors.APIError as error:
                    raise PlatformError(
                        f"there is no such image ({error.explanation})",
                        where=f"platform.containers.{field}: {name}",
                        fix="build both: make images",
                    ) from None
            os.environ[variable] = f"{name.partition('@')[0]}@{image.id}"
            if field == "image" and (revision := (image.labels or {}).get(_REVISION_LABEL)):
                os.environ["EMUFLOW_GIT_COMMIT"] = revision  # the code that runs is the image's


def container_runner(run_folder: Path, arguments: Mapping[str, str], settings: ContainerSettings) -> "DockerRunner":
    """kfp's runner with every step's surroundings, and with `_run` in the place of its own function."""
    from kfp.local import DockerRunner, docker_task_handler

    home = run_folder.parent.parent
    (run_folder / "artifacts").mkdir(exist_ok=True)
    (run_folder / _END_FILE).unlink(missing_ok=True)
    if os.getuid() == 0:
        _give(home, USER)
    volumes = {str(home): {"bind": str(home), "mode": "rw"}}
    source = read_data_source(arguments)
    if source is not None and not source.is_relative_to(home):
        volumes[str(source)] = {"bind": str(source), "mode": "ro"}
    docker_task_handler.run_docker_container = functools.partial(_run, run_folder=run_folder, mounts=volumes)
    network = settings.network or ("none" if _needs_no_network() else None)
    environment = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
    if network == "none":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    options: dict[str, Any] = {"network_mode": network} if network else {}
    if settings.memory:
        options |= {"mem_limit": settings.memory, "memswap_limit": settings.memory}
    if settings.gpus:
        from docker.types import DeviceRequest

        options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return DockerRunner(
        labels={RUN_LABEL: run_folder.name},
        user=_user(),
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        shm_size=settings.shared_memory,
        init=True,
        healthcheck={"test": ["NONE"]},  # the server image's own is for serving
        environment=environment,
        **options,
    )


def read_data_source(arguments: Mapping[str, str]) -> Path | None:
    """The user's own data, where it is a file or folder of this machine."""
    source = Path(json.loads(arguments["data_settings"])["source"])
    return source if source.is_absolute() and source.exists() else None


def remove_containers(run_id: str) -> None:
    """End and remove every container of the run; a failure to reach the engine is told, not raised."""
    import docker.errors

    try:
        with _engine() as client:
            for container in client.containers.list(all=True, filters={"label": f"{RUN_LABEL}={run_id}"}):
                with contextlib.suppress(docker.errors.APIError):
                    container.stop(timeout=_STOP_S)
                with contextlib.suppress(docker.errors.NotFound):
                    container.remove(force=True)
    except (PlatformError, docker.errors.DockerException) as error:
        print(f"the containers of {run_id} could not be removed: {error}", file=sys.stderr, flush=True)


def read_end(run_folder: Path) -> ContainerEnd | None:
    """How the last container of this start ended; `None` where none has."""
    file = run_folder / _END_FILE
    return ContainerEnd(**read_json(file)) if file.is_file() else None


def container_log(run_folder: Path) -> Path:
    """What the last container wrote to its own output: everything before its step opened its log, and after."""
    return run_folder / "logs" / _LOG_FILE


def _run(
    client: "DockerClient",
    image: str,
    command: list[str],
    volumes: Mapping[str, Any],
    *,
    run_folder: Path,
    mounts: Mapping[str, Any],
    **options: Any,
) -> int:
    """Run one container to its end, with its output on ours; returns its exit code, which is never 0 after a kill."""
    reference = image.partition("@")[2] or image
    if any(volume["mode"].endswith(",z") for volume in volumes.values()):  # kfp found SELinux
        mounts = {path: {**mount, "mode": f"{mount['mode']},z"} for path, mount in mounts.items()}
    mounts = {**volumes, **mounts}
    options["environment"] = {**options.get("environment", {}), STEP_IMAGE_VARIABLE: image}
    step = step_of_task(_task(command))
    write_script(run_folder / "containers" / f"{step}.sh", step, reference, command, mounts, options)
    container = client.containers.create(reference, command, volumes=mounts, detach=True, **options)
    try:
        output = container.attach(stream=True)  # before the start: podman's logs hang where the end comes first
        container.start()
        with container_log(run_folder).open("wb") as log:
            for chunk in output:
                log.write(chunk)
                log.flush()
                print(chunk.decode(errors="replace"), end="")
        code = int(container.wait()["StatusCode"])
        container.reload()
        state = container.attrs["State"]
        if code == 0 and state.get("Status") not in ("exited", "stopped"):
            code = _SIGKILL
        end = ContainerEnd(
            step=step,
            exit_code=code,
            out_of_memory=code != 0 and bool(state.get("OOMKilled")),
            memory_limit=options.get("mem_limit"),
        )
        write_json(run_folder / _END_FILE, asdict(end))
        return code
    finally:
        container.remove(force=True)


def _task(command: Sequence[str]) -> str:
    """The name of the task that kfp's executor is started for: it is the folder of its outputs."""
    executor_input = json.loads(command[list(command).index("--executor_input") + 1])
    return Path(executor_input["outputs"]["outputFile"]).parent.name


@contextlib.contextmanager
def _engine() -> Iterator["DockerClient"]:
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


def _user() -> str:
    """Whoever starts the run, so that its files are theirs; root's steps run as the images' own user."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{USER}:{USER}"


def _give(folder: Path, user: int) -> None:
    """Make `user` the owner of everything in `folder`. Root can still write there."""
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            os.chown(Path(parent) / name, user, user, follow_symlinks=False)


def _needs_no_network() -> bool:
    """Whether tracking and releases are the home's own SQLite file."""
    addresses = [os.environ.get(name, "") for name in ("MLFLOW_TRACKING_URI", "EMUFLOW_RELEASE_URL")]
    return all(address.startswith("sqlite:") for address in addresses)

"""kfp's container runner, with what every step's container may do and see."""

import contextlib
import functools
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import PlatformError
from components.step import RELEASE_URL_VARIABLE, RUN_FOLDER_VARIABLE, STEP_RUNS_VARIABLE
from pipelines.connection import TRACKING_VARIABLE
from pipelines.containers.engine import HOME_LABEL, RUN_LABEL
from pipelines.containers.images import IMAGE_VARIABLES
from pipelines.containers.step import forget_end, run_step
from pipelines.settings import ContainerSettings

if TYPE_CHECKING:
    from kfp.local import DockerRunner

USER = 10001
"""The user of the images, where the one who starts the run is root."""

_PASSED_ON = {
    *IMAGE_VARIABLES.values(),
    RELEASE_URL_VARIABLE,
    RUN_FOLDER_VARIABLE,
    STEP_RUNS_VARIABLE,
    "EMUFLOW_GIT_COMMIT",
    "EMUFLOW_RUN_ID",
}
_PASSED_ON_PREFIXES = ("MLFLOW_", "OMP_")
_SQLITE = "sqlite:///"


def container_runner(run_folder: Path, arguments: Mapping[str, str], settings: ContainerSettings) -> "DockerRunner":
    """kfp's runner with every step's surroundings, and with `run_step` in the place of its own function.

    Raises `PlatformError` where a step could not reach its records from a container.
    """
    from kfp.local import DockerRunner, docker_task_handler

    home = run_folder.parent.parent
    (run_folder / "artifacts").mkdir(exist_ok=True)
    forget_end(run_folder)
    offline = _records_are_files_of(home)
    if os.getuid() == 0:
        _give(home, USER)
    volumes = {str(home): {"bind": str(home), "mode": "rw"}}
    source = _data_source(arguments)
    if source is not None and not source.is_relative_to(home):
        volumes[str(source)] = {"bind": str(source), "mode": "ro"}
    docker_task_handler.run_docker_container = functools.partial(run_step, run_folder=run_folder, mounts=volumes)

    environment = {name: value for name, value in os.environ.items() if _passed_on(name, settings)}
    network = settings.network or ("none" if offline else None)
    if network == "none":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    options: dict[str, Any] = {"network_mode": network} if network else {}
    if settings.memory:
        options |= {"mem_limit": settings.memory, "memswap_limit": settings.memory}
    if settings.gpus:
        from docker.types import DeviceRequest

        options["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    return DockerRunner(
        labels={RUN_LABEL: run_folder.name, HOME_LABEL: str(home.resolve())},
        user=_user(),
        read_only=True,
        tmpfs={"/tmp": "mode=1777"},
        shm_size=settings.shared_memory,
        init=True,
        healthcheck={"test": ["NONE"]},  # the server image's own is for serving
        environment=environment,
        **options,
    )


def _passed_on(name: str, settings: ContainerSettings) -> bool:
    return name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIXES) or name in settings.environment


def _data_source(arguments: Mapping[str, str]) -> Path | None:
    """The user's own data, where the run reads it, and it is a file or folder of this machine."""
    source = Path(json.loads(arguments.get("data_settings", '{"source": ""}'))["source"])
    return source if source.is_absolute() and source.exists() else None


def _user() -> str:
    """Whoever starts the run, so that its files are theirs; root's steps run as the images' own user."""
    return f"{os.getuid()}:{os.getgid()}" if os.getuid() else f"{USER}:{USER}"


def _give(folder: Path, user: int) -> None:
    """Make `user` the owner of everything in `folder`; root can still write there. What vanishes meanwhile is fine."""
    for parent, folders, files in os.walk(folder):
        for name in (".", *folders, *files):
            with contextlib.suppress(FileNotFoundError):
                if os.lstat(Path(parent) / name).st_uid != user:
                    os.chown(Path(parent) / name, user, user, follow_symlinks=False)


def _records_are_files_of(home: Path) -> bool:
    """Whether tracking and releases both are SQLite files in `home`, so that a step needs no network.

    Raises `PlatformError` for a SQLite file elsewhere: no container sees it.
    """
    addresses = {name: os.environ.get(name, "") for name in (TRACKING_VARIABLE, RELEASE_URL_VARIABLE)}
    for name, address in addresses.items():
        if address.startswith(_SQLITE) and not Path(address.removeprefix(_SQLITE)).is_relative_to(home.resolve()):
            raise PlatformError(
                "a container sees no SQLite file outside the home",
                where=f"{name}: {address}",
                fix="keep the home's own, or name a server's address",
            )
    return all(address.startswith(_SQLITE) for address in addresses.values())

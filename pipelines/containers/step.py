"""One step in one container, from its creation to its removal.

kfp's own function lets the engine remove a container as soon as it ends, and where that is quicker than the question
for its exit code, a failure counts as a success. Here a container is removed after its end has been read.
"""

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.files import read_json, write_json
from common.redaction import redact_text
from components.step import STEP_IMAGE_VARIABLE
from pipelines.containers.script import write_script
from pipelines.steps import step_of_task

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_END_FILE, _LOG_FILE, _PID_FILE = "container.json", "container.log", "container.pid"
_SIGKILL = 137
_NOT_STARTED = 125
"""What podman and docker themselves end with where they cannot start a container."""


@dataclass(frozen=True)
class ContainerEnd:
    """How the last container of a run ended, which its step may not have been able to write itself."""

    step: str
    exit_code: int
    out_of_memory: bool = False
    memory_limit: str | None = None
    error: str = ""
    """Why it could not be started or followed, as the engine says."""

    @property
    def reason(self) -> str:
        """In words, empty where it ended well."""
        limit = f"limit: {self.memory_limit or 'what the machine has'}"
        if self.error:
            return f"its container could not be run: {self.error}"
        if self.out_of_memory:
            return f"its container was killed for memory ({limit})"
        if self.exit_code == _SIGKILL:  # podman does not tell why with the first version of cgroups
            return f"its container was killed (SIGKILL), as the kernel does for memory ({limit})"
        return f"its container ended with exit code {self.exit_code}" if self.exit_code else ""


def read_end(run_folder: Path) -> ContainerEnd | None:
    """How the last container of this start ended; `None` where none has."""
    file = run_folder / _END_FILE
    return ContainerEnd(**read_json(file)) if file.is_file() else None


def forget_end(run_folder: Path) -> None:
    """Before a start: what an earlier one left does not count."""
    for name in (_END_FILE, _LOG_FILE, _PID_FILE):
        (run_folder / name).unlink(missing_ok=True)
    container_log(run_folder).unlink(missing_ok=True)


def container_log(run_folder: Path) -> Path:
    """What the last container wrote to its own output: everything before its step opened its log, and after."""
    return run_folder / "logs" / _LOG_FILE


def process_of_container(run_folder: Path) -> int | None:
    """The process id of the working container's first process, on this machine; `None` where there is none."""
    with contextlib.suppress(OSError, ValueError):
        return int((run_folder / _PID_FILE).read_text())
    return None


def run_step(
    client: "DockerClient",
    image: str,
    command: list[str],
    volumes: Mapping[str, Any],
    *,
    run_folder: Path,
    mounts: Mapping[str, Any],
    **options: Any,
) -> int:
    """Run one container to its end, with its output on ours; returns its exit code, which is never 0 after a kill.

    It has kfp's own signature, and docker-py's `options`; `mounts` are added to kfp's `volumes`. However it ends is
    also written into the run's folder, before an error of the engine is raised.
    """
    from kfp.dsl.constants import WORKSPACE_MOUNT_PATH

    step, reference = step_of_task(_task(command)), image.partition("@")[2] or image
    if any(volume["mode"].endswith(",z") for volume in volumes.values()):  # kfp found SELinux
        mounts = {path: {**mount, "mode": f"{mount['mode']},z"} for path, mount in mounts.items()}
    kfps = {path: volume for path, volume in volumes.items() if volume["bind"] != WORKSPACE_MOUNT_PATH}
    mounts = {**kfps, **mounts}  # no step has kfp's workspace
    options["environment"] = {**options.get("environment", {}), STEP_IMAGE_VARIABLE: image}
    limit = options.get("mem_limit")
    try:
        write_script(run_folder / "containers" / f"{step}.sh", step, client, reference, command, mounts, options)
        with _container(client, reference, command, volumes=mounts, detach=True, **options) as container:
            end = ContainerEnd(step, *_follow(container, run_folder), memory_limit=limit)
    except Exception as error:
        _write_end(run_folder, ContainerEnd(step, _NOT_STARTED, memory_limit=limit, error=redact_text(str(error))))
        raise
    _write_end(run_folder, end)
    return end.exit_code


def _follow(container: "Container", run_folder: Path) -> tuple[int, bool]:
    """Start the container and pass its output on to its end; returns its exit code and whether memory ended it."""
    output = container.attach(stream=True)  # before the start: podman's logs hang where the end comes first
    container.start()
    container.reload()
    (run_folder / _PID_FILE).write_text(str(container.attrs["State"].get("Pid", 0)))
    with container_log(run_folder).open("wb") as log:
        for chunk in output:
            log.write(chunk)
            log.flush()
            print(chunk.decode(errors="replace"), end="")
    code = int(container.wait()["StatusCode"])
    (run_folder / _PID_FILE).unlink(missing_ok=True)
    container.reload()
    state = container.attrs["State"]
    if code == 0 and state.get("Status") not in ("exited", "stopped"):
        code = _SIGKILL
    return code, code != 0 and bool(state.get("OOMKilled"))


@contextlib.contextmanager
def _container(client: "DockerClient", reference: str, command: list[str], **options: Any) -> Iterator["Container"]:
    """A created container, removed at the end. A signal waits until the engine has it, so that it can be found."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        container = client.containers.create(reference, command, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield container
    finally:
        try:
            container.remove(force=True)
        except Exception as error:  # noqa: BLE001  the step's own end counts; what is left goes with the run
            print(f"container {container.name} is not removed yet: {error}", file=sys.stderr)


def _write_end(run_folder: Path, end: ContainerEnd) -> None:
    write_json(run_folder / _END_FILE, asdict(end))


def _task(command: Sequence[str]) -> str:
    """The name of the task that kfp's executor is started for: it is the folder of its outputs."""
    executor_input = json.loads(command[list(command).index("--executor_input") + 1])
    return Path(executor_input["outputs"]["outputFile"]).parent.name

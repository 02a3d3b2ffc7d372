"""Podman or Docker on this machine, and what podman needs to be told where no systemd runs.

Only the standard library: images are built before anything is installed.
"""

import os
import resource
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SYSTEMD = Path("/run/systemd/system")
_ONE_CGROUP_HIERARCHY = Path("/sys/fs/cgroup/cgroup.controllers")
_ENOUGH = 20_000
"""Files and processes of one container; podman's own much higher defaults are refused without full privileges."""
_LIMITS = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}


class EngineError(Exception):
    """There is no container engine here, or it cannot do what was asked; the message says why."""


def find_engine() -> str:
    """Path of podman or docker (`ENGINE` names one). Raises `EngineError` where there is none."""
    named = os.environ.get("ENGINE")
    found = shutil.which(named) if named else shutil.which("podman") or shutil.which("docker")
    if found is None:
        raise EngineError(f"{named or 'podman or docker'} is not installed")
    return found


def is_podman(engine: str) -> bool:
    return Path(engine).name.startswith("podman")


def engine_environment(engine: str, folder: Path) -> dict[str, str]:
    """The environment to call `engine` with; `folder` takes a configuration file where one is needed.

    Podman asks systemd for cgroups and sets limits that a restricted machine refuses. Where no systemd runs it is told
    what this machine allows, unless `CONTAINERS_CONF` already names a configuration.
    """
    environment = dict(os.environ)
    if not is_podman(engine) or "CONTAINERS_CONF" in environment or _SYSTEMD.exists():
        return environment
    limits = ", ".join(f'"{name}={_hard_limit(which)}:{_hard_limit(which)}"' for name, which in _LIMITS.items())
    lines = ["[containers]", f"default_ulimits = [{limits}]", "[engine]", 'cgroup_manager = "cgroupfs"']
    if not _ONE_CGROUP_HIERARCHY.exists() and shutil.which("runc"):
        lines.append('runtime = "runc"')  # crun, podman's default, refuses the hybrid of both cgroup versions
    file = folder / "containers.conf"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return environment | {"CONTAINERS_CONF": str(file)}


def call(engine: str, environment: Mapping[str, str], *arguments: str) -> str:
    """What a command of the engine prints. Raises `EngineError` with its complaint where it fails."""
    done = subprocess.run([engine, *arguments], env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineError(f"{Path(engine).name} {arguments[0]}: {done.stderr.strip()[-2000:]}")
    return done.stdout.strip()


def _hard_limit(which: int) -> int:
    limit = resource.getrlimit(which)[1]
    return _ENOUGH if limit == resource.RLIM_INFINITY else min(limit, _ENOUGH)

"""A script beside a run's logs that starts a step's container again, to look around in it or to repeat the step."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.redaction import redact

if TYPE_CHECKING:
    from docker import DockerClient

_TEXT = """#!/bin/sh
# In the image and the surroundings of step {step}:
#   {name}             a shell
#   {name} COMMAND …   that command
#   {name} --step      the step once more: what it writes, it writes again
engine=${{ENGINE:-{engine}}}
[ -t 0 ] && terminal=--tty
[ $# -gt 0 ] || set -- sh
[ "$1" != --step ] || set -- {command}
exec "$engine" run --rm --interactive $terminal \\
  {options} \\
  {image} "$@"
"""


def write_script(
    path: Path,
    step: str,
    client: "DockerClient",
    image: str,
    command: Sequence[str],
    volumes: Mapping[str, Any],
    options: Mapping[str, Any],
) -> None:
    """Write the script that does what the engine was told: `options` are docker-py's `containers.create`.

    An environment variable that holds a secret, by its name or its value, is passed on from whoever calls the script;
    its value is not written.
    """
    path.parent.mkdir(exist_ok=True)
    words = [f"--volume={source}:{volume['bind']}:{volume['mode']}" for source, volume in volumes.items()]
    for name, value in sorted(options.get("environment", {}).items()):
        words.append(f"--env={name}={value}" if redact({name: value}) == {name: value} else f"--env={name}")
    words += [f"--tmpfs={target}:{settings}" for target, settings in options.get("tmpfs", {}).items()]
    words += [f"--{flag}" for flag, name in (("read-only", "read_only"), ("init", "init")) if options.get(name)]
    named = {
        "user": "user",
        "network": "network_mode",
        "shm-size": "shm_size",
        "memory": "mem_limit",
        "memory-swap": "memswap_limit",
    }
    words += [f"--{flag}={options[name]}" for flag, name in named.items() if options.get(name)]
    words += ["--gpus=all"] if options.get("device_requests") else []
    path.write_text(
        _TEXT.format(
            step=step,
            name=path.name,
            engine=_engine_name(client),
            command=shlex.join(command),
            options=" \\\n  ".join(map(shlex.quote, [*words, "--no-healthcheck"])),
            image=shlex.quote(image),
        )
    )
    path.chmod(0o700)


def _engine_name(client: "DockerClient") -> str:
    components = client.version().get("Components") or [{}]
    return "podman" if "podman" in str(components[0].get("Name", "")).casefold() else "docker"

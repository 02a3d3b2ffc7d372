"""A script beside a run's logs that starts a step's container again, to repeat the step or to look around in it."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.redaction import redact_text

_TEXT = """#!/bin/sh
# Step {step} again, in its image and its surroundings. With arguments, those instead of the step: `{name} sh`.
engine=${{ENGINE:-$(command -v podman || command -v docker)}}
[ -t 0 ] && terminal=--tty
[ $# -gt 0 ] || set -- {command}
exec "$engine" run --rm --interactive $terminal {options} \\
  {image} "$@"
"""


def write_script(
    path: Path, step: str, image: str, command: Sequence[str], volumes: Mapping[str, Any], options: Mapping[str, Any]
) -> None:
    """Write the script that runs `command` as the engine was told to: `options` are docker-py's `containers.create`.

    An environment variable that holds a secret is passed on from whoever calls the script; its value is not written.
    """
    path.parent.mkdir(exist_ok=True)
    words = [f"--volume={source}:{volume['bind']}:{volume['mode']}" for source, volume in volumes.items()]
    for name, value in sorted(options.get("environment", {}).items()):
        words += ["--env", name if redact_text(value) != value else f"{name}={value}"]
    words += [f"--tmpfs={target}:{settings}" for target, settings in options.get("tmpfs", {}).items()]
    words += [f"--{flag}" for flag, name in (("read-only", "read_only"), ("init", "init")) if options.get(name)]
    named = {"user": "user", "network": "network_mode", "shm-size": "shm_size", "memory": "mem_limit"}
    words += [f"--{flag}={options[name]}" for flag, name in named.items() if options.get(name)]
    if options.get("device_requests"):
        words.append("--gpus=all")
    path.write_text(
        _TEXT.format(
            step=step,
            name=path.name,
            command=shlex.join(command),
            options=" \\\n  ".join(map(shlex.quote, words)),
            image=shlex.quote(image),
        )
    )
    path.chmod(0o755)

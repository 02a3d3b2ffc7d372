"""A training on several machines that a remote shell reaches: on each of them one node, as `node.py` runs it by hand."""

import contextlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import TrainingError
from common.progress import PROGRESS_VARIABLE
from components.train.launcher import Launcher, LocalLauncher, RankCommand
from components.train.settings import LauncherSettings

_POLL_S = 0.2
_ENDING_S = 60.0
_PASSED_ON = ("EMUFLOW_IMAGE", PROGRESS_VARIABLE)
_PASSED_ON_PREFIX = "MLFLOW_"
"""Variables of the step that its ranks read, wherever they are. Some are secret: they are never on a command line."""


def launcher_of(settings: LauncherSettings) -> Launcher:
    """What starts the ranks."""
    return LocalLauncher() if settings.kind == "processes" else HostsLauncher(settings)


class HostsLauncher:
    """Every host sees the home under the same path, and has this environment under the same path.

    A node reads the step's variables from its standard input, and ends once that ends: with its remote shell, which ends
    with this process. Nothing trains on alone.
    """

    def __init__(self, settings: LauncherSettings):
        self._settings = settings

    @property
    def nodes(self) -> int:
        return len(self._settings.hosts)

    def run(self, ranks: RankCommand) -> None:
        run, hosts = secrets.token_hex(8), self._settings.hosts
        shells: list[subprocess.Popen[bytes]] = []
        try:
            for number in range(len(hosts)):
                shells.append(subprocess.Popen(self._command(ranks, number, run), stdin=subprocess.PIPE))
                _pass_variables(shells[-1])
            failed = _first_failure(shells)
        except FileNotFoundError as error:
            raise TrainingError(
                f"there is no program '{error.filename}'", where="platform.launcher.remote_shell", fix="install it"
            ) from None
        finally:
            for shell in shells:
                assert shell.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    shell.stdin.close()
            for shell in shells:
                _end(shell)
        if failed is not None:
            raise TrainingError(
                f"the node on {hosts[failed]} ended with an error (exit code {shells[failed].returncode})",
                where="training",
                fix="read the step's log; `emuflow run --resume` goes on from the last saved state",
            )

    def _command(self, ranks: RankCommand, number: int, run: str) -> list[str]:
        """The remote shell joins what follows the host's name, as ssh does: every word is quoted for it."""
        settings = self._settings
        addresses = settings.addresses or settings.hosts
        node = [
            *(sys.executable, "-m", "components.train.node", *ranks.arguments),
            *(f"--module={ranks.module}", f"--restarts={ranks.restarts}", "--attended", f"--run={run}"),
            *(f"--nodes={self.nodes}", f"--number={number}", f"--rendezvous={addresses[0]}:{settings.port}"),
            f"--address={addresses[number]}",
            *([f"--interface={settings.interface}"] if settings.interface else []),
        ]
        there = f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(node)}"
        return [*settings.remote_shell, settings.hosts[number], there]


def _pass_variables(shell: subprocess.Popen[bytes]) -> None:
    """As the first line of its input, in JSON. One that has ended already reads none, and its exit code tells why."""
    passed = {
        name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith(_PASSED_ON_PREFIX)
    }
    assert shell.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        shell.stdin.write(json.dumps(passed).encode() + b"\n")
        shell.stdin.flush()


def _first_failure(shells: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """Which of them ended with an error, as soon as one has; None once all have ended well."""
    while True:
        codes = [shell.poll() for shell in shells]
        failed = next((number for number, code in enumerate(codes) if code), None)
        if failed is not None or None not in codes:
            return failed
        time.sleep(_POLL_S)


def _end(shell: subprocess.Popen[bytes]) -> None:
    try:
        shell.wait(timeout=_ENDING_S)
    except subprocess.TimeoutExpired:
        shell.kill()
        shell.wait()

"""A home with runs of the `smoke` preset in it, driven through the command line as a user does."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Chain:
    """The command line, on one home."""

    home: Path
    timeout_s: float = 900

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli", *arguments],
            env=os.environ | {"EMUFLOW_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def call(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; fails unless it ends with `code`. Returns what it printed."""
        with self.start(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=self.timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()  # leaving the block waits for its end
                raise
        assert process.returncode == code, output
        return output

    def status(self) -> dict[str, Any]:
        return json.loads(self.call("status", "--json"))

    def history(self) -> dict[str, Any]:
        return json.loads(self.call("history", "--json"))

    def run_folder(self) -> Path:
        """The folder of the newest run."""
        return max(path for path in (self.home / "pipeline").iterdir() if path.is_dir())

    def step(self, name: str) -> dict[str, Any]:
        return _read(self.run_folder() / "steps" / f"{name}.json")

    def progress(self, name: str) -> int:
        return _read(self.run_folder() / "steps" / f"{name}.progress").get("done", 0)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def wait_until(condition: Callable[[], Any], process: subprocess.Popen[str], timeout_s: float = 900) -> None:
    """Wait for `condition` while `process` works."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def descendants(process: subprocess.Popen[str], *words: str) -> list[psutil.Process]:
    """The processes below `process` whose command line holds all `words`."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            line = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if all(word in line for word in words):
            found.append(child)
    return found


def still_alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those of `processes` that have not ended within three seconds; one that nobody has reaped yet has ended."""
    _, alive = psutil.wait_procs(processes, timeout=3)
    return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def end(process: subprocess.Popen[str], signal_number: int = signal.SIGTERM) -> str:
    """Send a signal and wait. Returns what was printed."""
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=120)
    return output

"""Two real runs in one home, made once for all tests that read what runs leave.

The second one is killed, interrupted and resumed on its way. Who changes a file of theirs changes it in a copy.
"""

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.steps import STEPS
from tests.pipelines.chain import Chain, descendants, end, still_alive, wait_until

IMPOSSIBLE = "gate.absolute.min_accuracy=0.99"


@dataclass(frozen=True)
class FirstRun:
    chain: Chain
    output: str
    status: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> FirstRun:
    """A first run, which becomes the champion."""
    chain = Chain(tmp_path_factory.mktemp("chain") / "runs")
    output = chain.call("run", "--preset", "smoke")
    return FirstRun(chain, output, chain.status(), chain.run_folder())


@dataclass(frozen=True)
class SecondRun:
    """What was seen of a run that was killed in training, interrupted in the benchmark, and then finished."""

    terminated_code: int
    left_training: list[int]
    killed_output: str
    interrupted_output: str
    interrupted_code: int
    server_pids: list[int]
    ports: list[int]
    open_ports: list[int]
    left_behind: list[int]
    completed_before: dict[str, float]
    status: dict[str, Any]
    folder: Path


@pytest.fixture(scope="session")
def second(first: FirstRun) -> SecondRun:
    chain = first.chain
    process = chain.start("run", "--preset", "smoke", "--seed", "1", "--set", IMPOSSIBLE)
    wait_until(lambda: chain.run_folder() != first.folder and chain.progress("train") >= 2, process)
    training = descendants(process, "components.train.worker")
    end(process, signal.SIGTERM)
    terminated_code, left_training = process.returncode, [child.pid for child in still_alive(training)]

    process = chain.start("run", "--resume")
    wait_until(lambda: chain.progress("train") >= 12, process)
    descendants(process, "components.train.worker", "-u")[-1].kill()
    killed_output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, killed_output
    completed = {name: chain.step(name)["started"] for name in STEPS if chain.step(name).get("status") == "succeeded"}

    process = chain.start("run", "--resume")
    wait_until(lambda: descendants(process, "tritonserver") and chain.progress("benchmark") >= 1, process)
    servers = [child.pid for child in descendants(process, "tritonserver")]
    everything = descendants(process)
    ports = sorted(_listening(servers))
    interrupted_output = end(process, signal.SIGINT)
    completed |= {name: chain.step(name)["started"] for name in ("train", "calibrate", "export")}

    left = [child.pid for child in still_alive(everything)]
    open_ports = [port for port in ports if port in _listening(None)]
    code = process.returncode
    chain.call("run", "--resume")
    return SecondRun(
        terminated_code, left_training, killed_output, interrupted_output, code, servers, ports, open_ports, left, completed,
        chain.status(), chain.run_folder(),
    )  # fmt: skip


def _listening(pids: list[int] | None) -> set[int]:
    return {
        connection.laddr.port
        for connection in psutil.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and (pids is None or connection.pid in pids)
    }

"""Two real packages in one real Triton server: a canary with a fault in it loses its traffic by itself."""

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient, GeneratorError
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import canary
from serving.release.experiments.poller import Poller
from serving.release.experiments.recorder import Recorder
from serving.release.experiments.router import Router
from serving.release.experiments.states import ExperimentStore
from serving.release.experiments.stored_split import StoredSplit
from serving.server import TritonServer
from tests.packages import change_and_sign
from tests.serving.release.experiments.conftest import POLICY

USERS = 3000


def slow(package: Path) -> None:
    """Every image takes 30 ms longer."""
    change(package, "    def draw(", "import time; time.sleep(0.03)")


def failing(package: Path) -> None:
    """It loads, draws the images by which it is checked and warmed up, and then fails."""
    change(package, "    def draw(", "self.drawn = getattr(self, 'drawn', 0) + 1; assert self.drawn < 8, 'a fault'")


def change(package: Path, signature: str, statement: str) -> None:
    """Put a statement before the first one of the generator's method."""
    file = package / "1" / "runtime" / "generator.py"
    lines = file.read_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith(signature))
    end = next(number for number in range(begin, len(lines)) if lines[number].rstrip().endswith(":"))
    lines.insert(end + 1, f"        {statement}")
    file.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("fault", [slow, failing])
def test_fault_24_a_faulty_canary_is_stopped_automatically(
    server: TritonServer,
    packages: dict[str, Path],
    key_folder: Path,
    tmp_path: Path,
    url: str,
    states: ExperimentStore,
    events: EventStore,
    fault: Callable[[Path], None],
) -> None:
    good = packages["int8"]
    bad = change_and_sign(Path(shutil.copytree(good, tmp_path / "bad")), fault, key_folder)
    policy = POLICY.model_copy(update={"ramp": (0.2, 0.5)})
    made = canary("live", control_digest=good.name, canary_digest=bad.name, salt="fixed-salt", policy=policy)
    states.change(made, expected_sequence=0, actor="tester", reason="start")
    with ExitStack() as stack:
        clients = {}
        for arm, package in (("champion", good), ("canary", bad)):
            server.load(package, arm, expected_digest=package.name)
            stack.callback(server.unload, arm)
            clients[arm] = stack.enter_context(GeneratorClient(server.grpc_endpoint, timeout_s=10, model=arm))
        recorder = stack.enter_context(Recorder(events, made, every_s=0.02))
        split = stack.enter_context(StoredSplit(states, "live", poll_s=0.05))
        stack.enter_context(Poller(Canary(states, events, "live").look, 0.2, "the canary's watch"))
        router = Router(split, clients, recorder, events)
        asked = 0
        for user in range(USERS):
            try:
                asked += router.generate(f"user-{user}", "a red seven", seed=1).arm == "canary"
            except GeneratorError:
                asked += 1
            if split.assign(f"user-{user}").share == 0:
                break
        after = {router.generate(f"user-{user}", "a red seven", seed=1).arm for user in range(100)}
    record = states.history("live")[0]
    assert record.experiment.arm("canary").status == "stopped" and after == {"champion"}
    proven = {found["metric"] for found in record.evidence["canary"] if found["verdict"] == "worse"}
    assert "latency_ratio" in proven if fault is slow else "error_rate" in proven
    summary = {arm.arm: arm for arm in events.summary("live")}
    assert summary["canary"].requests == asked and summary["champion"].errors == 0 and recorder.lost == 0

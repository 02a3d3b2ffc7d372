"""A training on two hosts, which are two network namespaces here: ranks that die are started again, and nothing is lost."""

import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from components.train.launcher import Node, RankCommand, node_environment, torchrun_command
from components.train.train import train
from tests.components.patterns import MODEL
from tests.components.train.trainings import curve, ranks_of, settings, wait_for_a_state


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface to the other one."""

    name: str
    interface: str
    address: str


@pytest.fixture
def hosts() -> Iterator[list[Host]]:
    """Two hosts that reach each other and nobody else; skips where this process may not make namespaces."""
    mark = uuid.uuid4().hex[:6]
    both = [Host(f"emuflow-{mark}-{number}", f"e{mark}{number}", f"10.77.0.{number + 1}") for number in range(2)]
    try:
        for host in both:
            ip("netns", "add", host.name)
        ip("link", "add", both[0].interface, "type", "veth", "peer", "name", both[1].interface)
        for host in both:
            ip("link", "set", host.interface, "netns", host.name)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", host.interface)
            ip("-n", host.name, "link", "set", host.interface, "up")
            ip("-n", host.name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        remove(both)
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', error)}")
    yield both
    remove(both)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def remove(hosts: list[Host]) -> None:
    for host in hosts:
        subprocess.run(["ip", "netns", "delete", host.name], capture_output=True, check=False)


class TwoHosts:
    """Runs a node of the training on each host."""

    def __init__(self, hosts: list[Host]):
        self._hosts, self.nodes = hosts, len(hosts)
        self.output = ""

    def run(self, ranks: RankCommand) -> None:
        nodes = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", host.name, sys.executable, "-m", "components.train.node"),
                    *(*ranks.arguments, "--nodes=2", f"--number={number}", "--rendezvous=10.77.0.1:29500"),
                    *(f"--address={host.address}", f"--interface={host.interface}"),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for number, host in enumerate(self._hosts)
        ]
        try:
            outputs = [node.communicate(timeout=240)[0] for node in nodes]
        finally:
            for node in nodes:
                node.kill()
        self.output = "\n".join(outputs)
        assert [node.returncode for node in nodes] == [0, 0], self.output[-4000:]


@pytest.mark.slow
def test_a_worker_that_is_killed_on_one_of_two_hosts_changes_no_loss(
    hosts: list[Host], data: tuple[Path, Path], uninterrupted: Path, tmp_path: Path
) -> None:
    tokenizers, shards = data
    work, launcher = tmp_path / "work", TwoHosts(hosts)
    killed: list[int] = []

    def kill_once_saved() -> None:
        wait_for_a_state(work)
        rank = ranks_of(work)[-1]
        killed.append(rank.pid)
        rank.send_signal(signal.SIGKILL)

    killer = threading.Thread(target=kill_once_saved)
    killer.start()
    changed = settings(processes=1, restarts=2)
    train(changed, MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint", launcher)
    killer.join()
    assert killed and "trains steps 1 to 40" in launcher.output
    assert curve(tmp_path / "checkpoint") == pytest.approx(curve(uninterrupted), rel=1e-6)


def test_the_command_line_is_torchruns_on_every_node() -> None:
    ranks = RankCommand(module="m", arguments=["job.json"], processes=8, threads=1, restarts=3)
    alone = torchrun_command(ranks, None)
    assert "--standalone" in alone and alone[-3:] == ["-m", "m", "job.json"]
    node = Node(nodes=4, number=2, rendezvous="a:1", run="r", address="10.0.0.3", interface="eth1")
    command = torchrun_command(ranks, node)
    assert {"--nnodes=4", "--rdzv-endpoint=a:1", "--rdzv-id=r", "--local-addr=10.0.0.3"} < set(command)
    assert {"--nproc-per-node=8", "--max-restarts=3", "--rdzv-conf=is_host=false"} < set(command)
    assert node_environment(node, 0)["GLOO_SOCKET_IFNAME"] == "eth1"
    shared = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    assert shared not in node_environment(None, 0) and node_environment(None, 3)[shared] == "1"

"""A training on two hosts, which are two network namespaces here: ranks that die are started again, and nothing is lost."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.errors import SettingsError, TrainingError
from common.files import read_json
from components.train.hosts import HostsLauncher, launcher_of
from components.train.job import Job
from components.train.launcher import LocalLauncher, Node, RankCommand, node_environment, torchrun_command
from components.train.settings import LauncherSettings
from components.train.train import train
from pipelines.settings import load
from tests.components.patterns import MODEL
from tests.components.train.trainings import curve, ranks_of, settings, wait_for_a_state

INTERFACE = "link0"


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface to the other one; `interface` is its name while it is made."""

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
            ip("-n", host.name, "link", "set", host.interface, "name", INTERFACE)
            ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
            ip("-n", host.name, "link", "set", INTERFACE, "up")
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


@pytest.fixture
def launcher(hosts: list[Host], tmp_path: Path) -> HostsLauncher:
    """Reaches the hosts by a shell that treats its arguments as ssh does: it joins them, and the host's shell reads that."""
    shell = tmp_path / "shell"
    shell.write_text('#!/bin/sh\nhost=$1\nshift\nexec ip netns exec "$host" sh -c "$*"\n')
    shell.chmod(0o755)
    return HostsLauncher(
        LauncherSettings(
            kind="hosts",
            hosts=[host.name for host in hosts],
            addresses=[host.address for host in hosts],
            interface=INTERFACE,
            remote_shell=[str(shell)],
        )
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_on_one_of_two_hosts_changes_no_loss(
    launcher: HostsLauncher, data: tuple[Path, Path], uninterrupted: Path, tmp_path: Path
) -> None:
    tokenizers, shards = data
    work = tmp_path / "work"
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
    assert killed
    assert read_json(tmp_path / "checkpoint" / "training.json")["first_step"] >= 5
    assert curve(tmp_path / "checkpoint") == pytest.approx(curve(uninterrupted), rel=1e-6)


def here(folder: Path, ends_at_once: str = "nobody") -> LauncherSettings:
    """Two hosts that are this machine; the node of one of them may end with an error before it has begun."""
    shell = folder / "here"
    shell.write_text(f'#!/bin/sh\n[ "$1" = {ends_at_once} ] && exit 7\nshift\nexec sh -c "$*"\n')
    shell.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return LauncherSettings(
        kind="hosts",
        hosts=["first", "second"],
        addresses=["127.0.0.1"] * 2,
        port=port,
        remote_shell=[str(shell)],
    )


def copied_job(uninterrupted: Path, folder: Path) -> Job:
    job = Job.read(uninterrupted.parent / "work" / "job.json").model_copy(update={"work": folder / "work"})
    job.write(folder / "job.json")
    return job


def of_job(file: Path) -> list[psutil.Process]:
    return [each for each in psutil.process_iter(["cmdline"]) if str(file) in " ".join(each.info["cmdline"] or ())]


def test_where_one_node_fails_no_other_one_waits_or_trains_on(uninterrupted: Path, tmp_path: Path) -> None:
    job = copied_job(uninterrupted, tmp_path)
    launcher = HostsLauncher(here(tmp_path, ends_at_once="second"))
    with pytest.raises(TrainingError, match=r"the node on second ended with an error \(exit code 7\)"):
        launcher.run(job.ranks(tmp_path / "job.json"))
    assert not of_job(tmp_path / "job.json")


def test_a_remote_shell_that_is_not_there_is_named(uninterrupted: Path, tmp_path: Path) -> None:
    job = copied_job(uninterrupted, tmp_path)
    launcher = HostsLauncher(here(tmp_path).model_copy(update={"remote_shell": ["no-such-shell"]}))
    with pytest.raises(TrainingError, match="no program 'no-such-shell'"):
        launcher.run(job.ranks(tmp_path / "job.json"))


def test_the_nodes_end_with_whoever_started_them(uninterrupted: Path, tmp_path: Path) -> None:
    copied_job(uninterrupted, tmp_path)
    script = (
        "import sys; from pathlib import Path; from components.train.job import Job; from components.train.hosts import "
        "HostsLauncher; from components.train.settings import LauncherSettings; file = Path(sys.argv[1]); "
        "HostsLauncher(LauncherSettings.parse_json(sys.argv[2])).run(Job.read(file).ranks(file))"
    )
    file = tmp_path / "job.json"
    command = [sys.executable, "-c", script, str(file), here(tmp_path).model_dump_json()]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as starter:
        wait_until(lambda: sum("torch.distributed.run" in each.cmdline() for each in of_job(file)) == 2)
        starter.kill()
    wait_until(lambda: not of_job(file))


def wait_until(true: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            if true():
                return
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"kind": "hosts", "hosts": ["alone"]}, "two or more hosts"),
        ({"kind": "hosts", "hosts": ["a", "b"], "addresses": ["10.0.0.1"]}, "1 addresses for 2 hosts"),
    ],
)
def test_hosts_that_do_not_go_are_refused(changed: dict[str, object], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        LauncherSettings.parse(changed, where="platform.launcher")


def test_the_platform_chooses_where_ranks_run() -> None:
    assert isinstance(launcher_of(LauncherSettings()), LocalLauncher)
    asked = ["platform.launcher.kind=hosts", "platform.launcher.hosts=[a, b]"]
    chosen = launcher_of(load("smoke", asked).platform.launcher)
    assert isinstance(chosen, HostsLauncher) and chosen.nodes == 2
    assert json.loads(load("smoke", asked).section_parameters()["launcher_settings"])["hosts"] == ["a", "b"]
    with pytest.raises(SettingsError, match="reaches no other host"):
        load("smoke", [*asked, "platform.runner=containers"])


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

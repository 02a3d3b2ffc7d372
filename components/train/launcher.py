"""Starting the ranks of a training with torchrun, on this machine or as one node of several.

torchrun starts them everywhere, with one command line: a launcher decides only where it runs. Nodes find each other
through a rendezvous (c10d) that the first of them hosts; where a rank dies, all are started again, at most `restarts`
times, and go on from the newest state.
"""

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.errors import TrainingError
from common.files import atomic_path
from common.processes import die_with_parent

_KEEP_FREED_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
LONGEST_COMPILATION_S = 600.0
"""DeepSpeed's operators take a minute or two; a lock older than this is no compilation's, whatever cannot be seen."""


@dataclass(frozen=True, kw_only=True)
class RankCommand:
    """What is to run: `python -m module arguments` on `processes` ranks of each node."""

    module: str
    arguments: Sequence[str]
    processes: int
    threads: int
    """Of each rank."""
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Node:
    """This machine among those of a training."""

    nodes: int
    number: int
    """Node 0 hosts the rendezvous. Which ranks are a node's is torchrun's choice: it sorts the nodes by address."""
    rendezvous: str
    """`HOST:PORT` of node 0, as all nodes reach it."""
    run: str
    """The same name on all nodes; other trainings at that address have others."""
    address: str | None = None
    """How the other nodes reach this one; None: by its host name."""
    interface: str | None = None
    """The network interface of that address, where the machine has several."""


class Launcher(Protocol):
    """Where ranks run."""

    @property
    def nodes(self) -> int:
        """Machines, each of which has as many ranks."""
        ...

    def run(self, ranks: RankCommand) -> None:
        """Start them and wait until all have ended. Raises `TrainingError` when one fails, after all restarts."""
        ...


class LocalLauncher:
    """Runs them here: all of them, or those of one node of several."""

    def __init__(self, node: Node | None = None):
        self._node = node

    @property
    def nodes(self) -> int:
        return 1 if self._node is None else self._node.nodes

    def run(self, ranks: RankCommand) -> None:
        """The ranks write to this process's standard output and end with it."""
        environment = rank_environment(ranks.threads, self.nodes) | node_environment(self._node, ranks.restarts)
        command = torchrun_command(ranks, self._node)
        with subprocess.Popen(command, env=environment, preexec_fn=die_with_parent) as torchrun:
            try:
                code = torchrun.wait()
            except BaseException:
                torchrun.terminate()
                torchrun.wait(timeout=30)
                raise
        if code != 0:
            raise TrainingError(
                f"a rank ended with an error (torchrun's exit code {code})",
                where="training",
                fix="read the step's log; `emuflow run --resume` goes on from the last saved state",
            )


def torchrun_command(ranks: RankCommand, node: Node | None) -> list[str]:
    """The command line of one node; the only node where there is no `node`."""
    where = ["--standalone"]
    if node is not None:
        where = [
            f"--nnodes={node.nodes}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={node.rendezvous}",
            f"--rdzv-id={node.run}",
            # Who hosts is said here: torchrun compares host names, which machines may share.
            f"--rdzv-conf=is_host={str(node.number == 0).lower()}",
            *([f"--local-addr={node.address}"] if node.address else []),
        ]
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *where,
        f"--nproc-per-node={ranks.processes}",
        f"--max-restarts={ranks.restarts}",
        "-m",
        ranks.module,
        *ranks.arguments,
    ]


def node_environment(node: Node | None, restarts: int) -> dict[str, str]:
    """What torch must know of this node beside the command line."""
    environment = {}
    if restarts:
        # With the agents' store shared by the ranks, a restart in place finds the keys of the attempt before it and hangs.
        # Without, rank 0 listens at a port that was free a moment before: where it no longer is, that takes a restart.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    if node is not None and node.interface is not None:
        environment |= {"GLOO_SOCKET_IFNAME": node.interface, "NCCL_SOCKET_IFNAME": node.interface}
    return environment


def extensions_folder(nodes: int = 1) -> Path:
    """Where DeepSpeed's compiled operators lie: `TORCH_EXTENSIONS_DIR`, else beside the environment's libraries.

    Several nodes may share that folder, and none sees whether another is still compiling: each has one of its own in it,
    by its host name, which begins with what was compiled before.
    """
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path(sysconfig.get_path("data")) / "torch_extensions"))
    if nodes == 1:
        return folder
    own = folder / "hosts" / platform.node()
    if not own.exists():
        try:
            with atomic_path(own) as begun:
                begun.mkdir()
                for compiled in {file.parent for file in folder.glob("*/*.so")}:
                    if not (compiled / "lock").exists():
                        shutil.copytree(compiled, begun / compiled.name)
        except OSError:
            if not own.exists():  # else a node of the same name was first
                raise
    return own


def search_path() -> str:
    """`PATH` with this environment's programs first: torch calls `ninja` by its name, and `pip` puts it there."""
    return os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])


def remove_stale_locks(folder: Path) -> None:
    """Remove the locks of compilations that were killed: whoever waits for one would wait for ever.

    A compilation that is still at work keeps its lock open, and so keeps it. Where a process of a lock's owner lets nobody
    see what it has open, a young lock may be its, and stays; those that this process was started by compile nothing.
    """
    locks = set(folder.resolve().glob("*/lock"))
    if not locks:
        return
    import psutil

    unread, starters = set[int](), psutil.Process().parents()
    for process in psutil.process_iter():
        try:
            locks -= {Path(file.path) for file in process.open_files()}
        except psutil.AccessDenied:
            with contextlib.suppress(psutil.Error):
                unread |= set(process.uids()) if process not in starters else set()
        except psutil.Error:
            continue
    for lock in locks:
        with contextlib.suppress(FileNotFoundError):  # its compilation has ended meanwhile
            found = lock.stat()
            if found.st_uid not in unread or time.time() - found.st_mtime > LONGEST_COMPILATION_S:
                lock.unlink()


def rank_environment(threads: int, nodes: int = 1) -> dict[str, str]:
    """The environment of a rank on one of so many nodes: CPU accelerator where no GPU is, its threads, and no stale build
    lock to hang on."""
    import torch

    folder = extensions_folder(nodes)
    remove_stale_locks(folder)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "PATH": search_path(),
        "TORCH_EXTENSIONS_DIR": str(folder),
    }
    if not torch.cuda.is_available():
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "GLIBC_TUNABLES": _tunables()}
    return environment


def _tunables() -> str:
    """glibc's, with the user's own last, which win: large tensors that are freed are used again in the next step.

    By default glibc gives each back to the system, which clears its pages anew: some 40,000 page faults in a step of
    32M weights.
    """
    return ":".join(filter(None, (_KEEP_FREED_MEMORY, os.environ.get("GLIBC_TUNABLES"))))

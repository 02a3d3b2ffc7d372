"""Worlds of real ranks: `python -m tests.model.parallel.worlds FOLDER` runs `FOLDER/worlds.json` and leaves the results.

torch and DeepSpeed take seconds to import, so this process imports them once and forks the ranks of each world, which
then are what torchrun starts: processes with a rank, a gloo group, and DeepSpeed in it.
"""

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from common.processes import die_with_parent
from model.parallel.layout import ParallelLayout
from tests.model.parallel.training import Job, run


def run_world(layout: ParallelLayout, jobs: list[Job], folder: Path) -> None:
    """Fork the ranks of a layout, which run the jobs one after another; raises `RuntimeError` where one fails."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    children = []
    for rank in range(layout.ranks):
        child = os.fork()
        if child == 0:
            os._exit(_rank(rank, layout, jobs, port, folder))
        children.append(child)
    running = set(children)
    while running:
        ended, status = os.waitpid(-1, 0)
        running.discard(ended)
        code = os.waitstatus_to_exitcode(status)
        if code:
            for child in running:  # they would wait for it
                os.kill(child, signal.SIGKILL)
            raise RuntimeError(f"rank {children.index(ended)} of {layout} ended with {code}")


def _rank(rank: int, layout: ParallelLayout, jobs: list[Job], port: int, folder: Path) -> int:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(layout.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    die_with_parent(signal.SIGKILL)
    try:
        torch.set_num_threads(1)
        deepspeed.init_distributed("gloo", verbose=False)
        for job in jobs:
            run(job, layout, folder)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:  # noqa: BLE001 - this process was forked: nothing above may see it
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def main() -> None:
    folder = Path(sys.argv[1])
    for world in json.loads((folder / "worlds.json").read_text()):
        jobs = [Job(**job) for job in world["jobs"]]
        run_world(ParallelLayout(*world["layout"]), jobs, folder / world["name"])


if __name__ == "__main__":
    main()

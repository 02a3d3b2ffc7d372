"""One rank that tries a micro-batch: `torchrun … -m components.train.probe JOB.json`.

It trains two steps as the job would, saves nothing, and ends well where they fit. Where they do not, the file `no-memory`
in the job's work folder says so.
"""

import logging
import resource
import signal
import sys
from datetime import timedelta
from pathlib import Path

import deepspeed
import psutil
import torch
import torch.distributed as dist

from common.processes import die_with_parent
from components.train.job import Job, layout_of
from components.train.micro_batch import CPU_SHARE, GPU_SHARE
from components.train.worker import open_engine
from model.data.shards import Shards

_STEPS = 2
_LACK = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
_CGROUP = Path("/sys/fs/cgroup")


def free_bytes() -> int:
    """Memory that is free on this machine, or in the container that this is (cgroup version 2)."""
    free = psutil.virtual_memory().available
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        return free if limit == "max" else min(free, int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return free


def run(job: Job) -> None:
    settings, shards = job.training, Shards(job.shards, "train")
    layout = layout_of(settings, job.model, dist.get_world_size(), where="parallel")
    engine, lessons = open_engine(job, shards, layout)
    for _ in range(_STEPS):  # the second one has the optimizer's state; the first step's lessons are the largest
        engine.step(lessons.lessons(0))
    held = engine.weights(), engine.optimizer_state()  # what saving a state takes
    del held
    if torch.cuda.is_available() and torch.cuda.max_memory_reserved() > GPU_SHARE * _gpu_bytes():
        raise torch.OutOfMemoryError("more than this rank's part of the GPU's memory")


def limit_memory(ranks: int) -> None:
    """Without a GPU, this rank may take its part of what is free of the machine, or of its container: an allocation beyond it
    fails, and everything else goes on."""
    if not torch.cuda.is_available():
        limit = int(CPU_SHARE * free_bytes() / ranks)
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        limits = [limit, *(own for own in (soft, hard) if own != resource.RLIM_INFINITY)]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory; torch's allocator for the CPU raises a plain `RuntimeError`."""
    told = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in told for sign in _LACK)


def _gpu_bytes() -> int:
    return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory


def main() -> None:
    die_with_parent(signal.SIGKILL)
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    job = Job.read(Path(sys.argv[1]))
    deepspeed.init_distributed(
        "nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(seconds=job.training.step_timeout_s),
        verbose=False,
    )
    limit_memory(job.training.processes)
    try:
        run(job)
    except (MemoryError, RuntimeError) as error:
        if is_lack_of_memory(error):
            (job.work / "no-memory").touch()
        raise


if __name__ == "__main__":
    main()

"""One rank that tries a micro-batch: `torchrun … -m components.train.probe JOB.json`.

It trains two steps as the job would, saves nothing, and ends well where they fit. Where they do not, the file `no-memory`
in the job's work folder says so.
"""

import logging
import signal
import sys
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist

from common.processes import die_with_parent
from components.train.job import Job
from components.train.layouts import layout_of
from components.train.memory import GPU_SHARE, limit_memory, telling_lack_of_memory
from components.train.worker import open_engine
from model.data.shards import Shards

_STEPS = 2


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
    with telling_lack_of_memory(job.work):
        run(job)


if __name__ == "__main__":
    main()

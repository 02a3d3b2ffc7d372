"""What machine a rank is on: `torchrun … -m components.train.machine JOB.json`, which says so in the job's work folder."""

import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

from common.files import read_json, write_json
from components.train.job import Job
from components.train.launcher import Launcher
from components.train.memory import limit_bytes, process_limits


def machines(job: Job, launcher: Launcher) -> list[str]:
    """The kinds of machines that a job's ranks run on. Where some of them are not this one, all ranks are started to ask.

    Raises `TrainingError` where they do not start.
    """
    if launcher.nodes == 1:
        return [machine()]
    work = job.work / "machines"
    file = work / "job.json"
    job.model_copy(update={"work": work}).write(file)
    launcher.run(replace(job.ranks(file), module="components.train.machine", restarts=0))
    ranks = range(job.training.processes * launcher.nodes)
    return sorted({read_json(_answer(work, rank))["machine"] for rank in ranks})


def machine() -> str:
    """The kind of this one, with the memory that its ranks may take."""
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"{gpu.name}, {_gib(gpu.total_memory)}"
    alone = "".join(f", {_gib(limit)} a process" for limit in sorted(process_limits())[:1])
    return f"{platform.machine()}, {_gib(limit_bytes())}{alone}"


def tell(work: Path, rank: int) -> None:
    write_json(_answer(work, rank), {"machine": machine()})


def _answer(work: Path, rank: int) -> Path:
    return work / f"{rank}.json"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    tell(Job.read(Path(sys.argv[1])).work, int(os.environ["RANK"]))

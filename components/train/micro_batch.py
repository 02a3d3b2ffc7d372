"""How many images a rank can compute at once: found by trying, and kept for the next training of the kind.

Each try is a start of all ranks that train two steps and end; one that runs out of memory ends too, and has told
something. More images at once never take less memory, so the largest number that fits is found by halving.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from common.errors import TrainingError
from common.files import digest_json, read_json, write_json
from common.processes import memory_kills
from components.train.job import Job
from components.train.launcher import Launcher
from components.train.sizes import micro_batch_sizes

CPU_SHARE, GPU_SHARE = 0.8, 0.92
"""Of the memory that is free at the start, what a training may take."""


def fitting_micro_batch(job: Job, launcher: Launcher, share: int, cache: Path) -> int:
    """The largest divisor of a rank's `share` of a step whose images fit its memory at once.

    `cache` is a folder of what was found before, by model, layout and machine. Raises `TrainingError` where not even one
    image fits.
    """
    file = cache / f"{_kind(job, launcher, share)}.json"
    if file.is_file():
        return int(read_json(file)["micro_batch_size"])
    tries: dict[int, bool] = {}

    def fits(size: int) -> bool:
        tries[size] = _try(job, launcher, size)
        return tries[size]

    sizes = micro_batch_sizes(job.training, job.model, job.objective, share)
    found = largest_that_fits(sizes, fits)
    if found is None:
        raise TrainingError(
            f"not even {sizes[0]} images at once fit the memory of a rank",
            where="training.parallel",
            fix="more tensor or pipeline parallel, ZeRO, or activation_checkpointing=true",
        )
    write_json(file, {"micro_batch_size": found, "tries": {str(size): fit for size, fit in sorted(tries.items())}})
    return found


def largest_that_fits(sizes: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending `sizes` that fits, where what is smaller than one that fits does, too; None: none does."""
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        if fits(sizes[middle]):
            low = middle + 1
        else:
            high = middle
    return sizes[low - 1] if low else None


def _try(job: Job, launcher: Launcher, size: int) -> bool:
    work = job.work / f"try-{size}"
    file, killed_before = work / "job.json", memory_kills()
    (work / "no-memory").unlink(missing_ok=True)
    job.with_micro_batch(size).model_copy(update={"work": work}).write(file)
    try:
        launcher.run(replace(job.ranks(file), module="components.train.probe", restarts=0))
    except TrainingError:
        if not (work / "no-memory").is_file() and memory_kills() == killed_before:
            raise  # for another reason, which is in the log
        return False
    return True


def _kind(job: Job, launcher: Launcher, share: int) -> str:
    training = job.training
    return digest_json(
        {
            "model": job.model.model_dump(mode="json"),
            "objective": job.objective,
            "parallel": training.parallel.model_dump(mode="json", exclude={"micro_batch_size"}),
            "ranks": training.processes * launcher.nodes,
            "share": share,
            "fine": [training.fine_batch_share, training.fine_every_steps],
            "precision": training.precision,
            "optimizer": training.optimizer,
            "compiled": training.compile_blocks,
            "device": device(),
        }
    )[:32]


def device() -> str:
    """The kind of machine, with its memory in GiB."""
    import psutil
    import torch

    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        return f"{gpu.name}, {gpu.total_memory >> 30} GiB"
    return f"{platform.machine()}, {psutil.virtual_memory().total >> 30} GiB"

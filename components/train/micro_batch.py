"""How many images a rank can compute at once: found by trying, and kept for the next training of the kind.

Each try is a start of all ranks that train two steps and end; one that runs out of memory ends too, and has told
something. More images at once never take less memory, so the largest number that fits is found by halving.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import MemoryLackError, TrainingError
from common.files import digest_json, read_json, write_json
from components.train.job import Job
from components.train.launcher import Launcher
from components.train.machine import machines
from components.train.memory import noticing_lack_of_memory
from components.train.sizes import micro_batch_sizes


@dataclass(frozen=True)
class Found:
    """How many images fit, and the file that says so to later trainings; a training that they do not fit removes it."""

    size: int
    file: Path


def fitting_micro_batch(job: Job, launcher: Launcher, share: int, cache: Path) -> Found:
    """The largest divisor of a rank's `share` of a step whose images fit its memory at once.

    `cache` is a folder of what was found before, by model, layout and machines. Raises `TrainingError` where not even one
    image fits.
    """
    those = machines(job, launcher)
    file = cache / f"{_kind(job, launcher, share, those)}.json"
    if file.is_file():
        return Found(int(read_json(file)["micro_batch_size"]), file)
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
    told = {str(size): fit for size, fit in sorted(tries.items())}
    write_json(file, {"micro_batch_size": found, "tries": told, "machines": those})
    return Found(found, file)


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
    file = work / "job.json"
    job.with_micro_batch(size).model_copy(update={"work": work}).write(file)
    try:
        with noticing_lack_of_memory(work):  # any other error is in the log, and ends the step
            launcher.run(replace(job.ranks(file), module="components.train.probe", restarts=0))
    except MemoryLackError:
        return False
    return True


def _kind(job: Job, launcher: Launcher, share: int, those: Sequence[str]) -> str:
    training = job.training
    return digest_json(
        {
            "model": job.model.model_dump(mode="json"),
            "objective": job.objective,
            "parallel": training.parallel.model_dump(mode="json", exclude={"micro_batch_size"}),
            "processes": training.processes,
            "nodes": launcher.nodes,
            "share": share,
            "fine": [training.fine_batch_share, training.fine_every_steps],
            "precision": training.precision,
            "optimizer": training.optimizer,
            "compiled": training.compile_blocks,
            "machines": list(those),
        }
    )[:32]

"""Memory that ranks may take, and how its lack is told: by the file `no-memory` in the job's work folder.

Ranks may run on other machines, and one that the kernel kills says nothing itself: then its node does.
"""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from common.errors import MemoryLackError, TrainingError
from common.processes import memory_kills

CPU_SHARE, GPU_SHARE = 0.8, 0.92
"""Of the memory that is free at the start, what a training may take."""
_LACK = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")
_CGROUP = Path("/sys/fs/cgroup")
_TOLD = "no-memory"


def limit_bytes() -> int:
    """Memory of this machine, or of the container that this is (cgroup version 2)."""
    total, limit = psutil.virtual_memory().total, _cgroup_bytes("memory.max")
    return total if limit is None else min(total, limit)


def free_bytes() -> int:
    """What of it is free."""
    free, limit, used = psutil.virtual_memory().available, _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    return free if limit is None or used is None else min(free, limit - used)


def _cgroup_bytes(name: str) -> int | None:
    """None where there is no such file, or no limit in it (`max`)."""
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None


def process_limits() -> list[int]:
    """Bytes that this process alone may take, where it was given limits."""
    return [limit for limit in resource.getrlimit(resource.RLIMIT_DATA) if limit != resource.RLIM_INFINITY]


def limit_memory(ranks: int) -> None:
    """Without a GPU, this rank may take its part of what is free of the machine, or of its container: an allocation beyond it
    fails, and everything else goes on."""
    import torch

    if not torch.cuda.is_available():
        limits = [int(CPU_SHARE * free_bytes() / ranks), *process_limits()]
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was no memory; torch's allocator for the CPU raises a plain `RuntimeError`."""
    import torch

    told = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(sign in told for sign in _LACK)


@contextmanager
def telling_lack_of_memory(work: Path) -> Iterator[None]:
    """In a rank: an error that says that there was no memory is told."""
    try:
        yield
    except Exception as error:
        if is_lack_of_memory(error):
            (work / _TOLD).touch()
        raise


@contextmanager
def telling_kills(work: Path) -> Iterator[None]:
    """Where ranks are started: that the kernel killed one for memory is told."""
    before = memory_kills()
    try:
        yield
    except TrainingError:
        if memory_kills() != before:
            (work / _TOLD).touch()
        raise


@contextmanager
def noticing_lack_of_memory(work: Path) -> Iterator[None]:
    """Around a launcher's `run`: a `TrainingError` becomes a `MemoryLackError` where memory ran out on any machine."""
    told = work / _TOLD
    told.unlink(missing_ok=True)
    try:
        with telling_kills(work):
            yield
    except TrainingError as error:
        if not told.is_file():
            raise
        raise MemoryLackError(
            f"{error.what}, and memory ran out",
            where=error.where,
            fix="give the ranks more memory, or let them compute fewer images at once (parallel.micro_batch_size; auto finds"
            " anew how many fit); `emuflow run --resume` goes on from the last saved state",
        ) from error

"""How many images fit is found by trying, with few tries, and is not tried again."""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from common.errors import MemoryLackError, TrainingError
from common.files import read_json
from components.train import memory
from components.train.hosts import HostsLauncher
from components.train.job import Job
from components.train.launcher import RankCommand
from components.train.machine import machine, machines, tell
from components.train.memory import telling_kills, telling_lack_of_memory
from components.train.micro_batch import fitting_micro_batch, largest_that_fits
from components.train.train import train
from tests.components.patterns import MODEL
from tests.components.train.test_nodes import here
from tests.components.train.trainings import settings


class Memory:
    """Starts nothing: a micro-batch up to `fits` images ends well, a larger one leaves what a rank without memory does.

    Every rank says that it is on a machine of this one's kind.
    """

    def __init__(self, fits: int, *, broken: bool = False, nodes: int = 1):
        self._fits, self._broken, self.nodes = fits, broken, nodes
        self.tried: list[int] = []

    def run(self, ranks: RankCommand) -> None:
        job = Job.read(Path(ranks.arguments[0]))
        if ranks.module == "components.train.machine":
            for rank in range(ranks.processes * self.nodes):
                tell(job.work, rank)
            return
        size = job.training.parallel.micro_batch_size
        assert ranks.module == "components.train.probe" and isinstance(size, int)
        self.tried.append(size)
        if self._broken:
            raise TrainingError("a rank ended with an error")
        if size > self._fits:
            (job.work / "no-memory").touch()
            raise TrainingError("a rank ended with an error")


@pytest.fixture(scope="module")
def job(data: tuple[Path, Path], uninterrupted: Path) -> Job:
    return Job.read(uninterrupted.parent / "work" / "job.json")


@pytest.mark.parametrize("limit", range(14))
def test_the_largest_is_found_by_halving(limit: int) -> None:
    sizes, asked = [1, 2, 3, 4, 6, 12], list[int]()

    def fits(size: int) -> bool:
        asked.append(size)
        return size <= limit

    expected = max((size for size in sizes if size <= limit), default=None)
    assert largest_that_fits(sizes, fits) == expected
    assert len(asked) <= 3


@pytest.fixture
def memory_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes this a container of so many bytes, without a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)

    def limit(size: int) -> None:
        (tmp_path / "memory.max").write_text(f"{size}\n")

    limit(2 << 30)
    return limit


def test_what_was_found_is_kept_with_the_tries_and_the_machines(
    job: Job, tmp_path: Path, memory_is: Callable[[int], None]
) -> None:
    moved, cache = job.model_copy(update={"work": tmp_path / "work"}), tmp_path / "cache"
    launcher = Memory(fits=20)
    found = fitting_micro_batch(moved, launcher, 48, cache)
    assert (found.size, list(cache.iterdir())) == (16, [found.file])
    assert 16 in launcher.tried and 24 in launcher.tried
    told = read_json(found.file)
    assert told["tries"]["16"] and not told["tries"]["24"]
    assert [kind.split(", ")[1] for kind in told["machines"]] == ["2.0 GiB"]
    again = Memory(fits=0)
    assert fitting_micro_batch(moved, again, 48, cache) == found and not again.tried


def changed_job(job: Job, part: str, value: Any) -> Job:
    """With another value of `model.…`, `training.…`, `training.parallel.…` or the job's own."""
    *sections, name = part.split(".")
    content = job.model_dump(mode="json")
    section = content
    for each in sections:
        section = section[each]
    assert section[name] != value
    section[name] = value
    return Job.parse(content)


PARTS = [
    ("model.intermediate_size", 64),
    ("objective", "next_token"),
    ("training.parallel.tensor", 2),
    ("training.parallel.pipeline", 2),
    ("training.parallel.zero", 1),
    ("training.parallel.activation_checkpointing", True),
    ("training.processes", 4),
    ("training.fine_batch_share", 0.25),
    ("training.fine_every_steps", 3),
    ("training.precision", "bf16"),
    ("training.optimizer", "adamw"),
    ("training.compile_blocks", True),
]


@pytest.mark.parametrize(("part", "value"), PARTS)
@pytest.mark.usefixtures("memory_is")
def test_another_model_or_layout_is_tried_anew(job: Job, tmp_path: Path, part: str, value: Any) -> None:
    moved, cache = job.model_copy(update={"work": tmp_path / "work"}), tmp_path / "cache"
    assert fitting_micro_batch(moved, Memory(fits=20), 48, cache).size == 16
    assert fitting_micro_batch(changed_job(moved, part, value), Memory(fits=3), 48, cache).size == 3
    assert fitting_micro_batch(moved, Memory(fits=0), 48, cache).size == 16


@pytest.mark.usefixtures("memory_is")
def test_another_share_or_number_of_machines_is_tried_anew(job: Job, tmp_path: Path) -> None:
    """As many ranks on fewer machines have less memory each."""
    moved, cache = job.model_copy(update={"work": tmp_path / "work"}), tmp_path / "cache"
    assert fitting_micro_batch(moved, Memory(fits=20), 48, cache).size == 16
    assert fitting_micro_batch(moved, Memory(fits=20), 24, cache).size == 12
    assert fitting_micro_batch(moved, Memory(fits=3, nodes=4), 48, cache).size == 3
    eight = changed_job(moved, "training.processes", 8)
    alone = changed_job(moved, "training.processes", 1)
    assert fitting_micro_batch(eight, Memory(fits=6), 48, cache).size == 6
    assert fitting_micro_batch(alone, Memory(fits=30, nodes=8), 48, cache).size == 24
    assert fitting_micro_batch(eight, Memory(fits=0), 48, cache).size == 6


@pytest.mark.parametrize("nodes", [1, 2])
def test_machines_with_less_memory_are_tried_anew(
    job: Job, tmp_path: Path, memory_is: Callable[[int], None], nodes: int
) -> None:
    """Where there are several, their ranks say so: this one may be another."""
    moved, cache = job.model_copy(update={"work": tmp_path / "work"}), tmp_path / "cache"
    assert fitting_micro_batch(moved, Memory(fits=20, nodes=nodes), 48, cache).size == 16
    memory_is(1 << 30)
    assert fitting_micro_batch(moved, Memory(fits=3, nodes=nodes), 48, cache).size == 3
    memory_is(2 << 30)
    assert fitting_micro_batch(moved, Memory(fits=0, nodes=nodes), 48, cache).size == 16


def test_a_limit_of_each_process_is_a_part_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, memory_is: Callable[[int], None]
) -> None:
    alike = machine()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (3 << 30, resource.RLIM_INFINITY))
    assert machine() == f"{alike}, 3.0 GiB a process"


class LateLack(Memory):
    """What fits two steps does not fit the training: its ranks say so, or end for another reason."""

    def __init__(self, *, told: bool):
        super().__init__(fits=8)
        self._told = told

    def run(self, ranks: RankCommand) -> None:
        if ranks.module != "components.train.worker":
            super().run(ranks)
            return
        with telling_lack_of_memory(Job.read(Path(ranks.arguments[0])).work):
            raise TrainingError("a rank ended: out of memory" if self._told else "a rank ended")


def test_a_training_that_runs_out_of_memory_forgets_what_fitted(data: tuple[Path, Path], tmp_path: Path) -> None:
    tokenizers, shards = data
    work, cache = tmp_path / "work" / "run" / "train", tmp_path / "work" / "micro-batch-sizes"

    def attempt(launcher: Memory) -> None:
        changed = settings(parallel={"micro_batch_size": "auto"})
        train(changed, MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint", launcher)

    with pytest.raises(MemoryLackError, match="memory ran out"):
        attempt(LateLack(told=True))
    assert not list(cache.iterdir())
    other = LateLack(told=False)
    with pytest.raises(TrainingError, match="a rank ended") as failed:
        attempt(other)
    assert not isinstance(failed.value, MemoryLackError)  # what was told the last time is no longer there
    assert other.tried and len(list(cache.iterdir())) == 1


def test_where_not_one_image_fits_it_says_so(job: Job, tmp_path: Path) -> None:
    moved = job.model_copy(update={"work": tmp_path / "work"})
    with pytest.raises(TrainingError, match="not even 2 images at once fit"):
        fitting_micro_batch(moved, Memory(fits=0), 8, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_another_error_is_no_lack_of_memory(job: Job, tmp_path: Path) -> None:
    moved = job.model_copy(update={"work": tmp_path / "work"})
    with pytest.raises(TrainingError, match="ended with an error"):
        fitting_micro_batch(moved, Memory(fits=8, broken=True), 8, tmp_path / "cache")


def train_with_little_memory(shards: Path, tokenizers: Path, work: Path, checkpoint: Path) -> None:
    """In a process of its own, that and each of its ranks may have 3 GiB; torch and DeepSpeed take most of one."""
    resource.setrlimit(resource.RLIMIT_DATA, (3 << 30, 3 << 30))
    wide = MODEL.model_copy(update={"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4})
    changed = settings(steps=1, global_batch_size=128, processes=1, parallel={"micro_batch_size": "auto"})
    train(changed, wide, shards, tokenizers, None, work, checkpoint)


def test_what_the_kernel_kills_on_another_host_is_told_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3, 3, 3, 4])
    monkeypatch.setattr(memory, "memory_kills", lambda: next(kills))
    for told in (False, True):
        with pytest.raises(TrainingError), telling_kills(tmp_path):
            raise TrainingError("a rank ended with an error")
        assert (tmp_path / "no-memory").is_file() == told


@pytest.mark.slow
def test_ranks_on_other_hosts_say_what_they_are_on(job: Job, tmp_path: Path) -> None:
    moved = job.model_copy(update={"work": tmp_path / "work"})
    assert machines(moved, HostsLauncher(here(tmp_path))) == [machine()]


@pytest.mark.slow
def test_real_ranks_that_run_out_of_memory_compute_fewer_images_at_once(
    data: tuple[Path, Path], tmp_path: Path
) -> None:
    tokenizers, shards = data
    work = tmp_path / "work" / "run" / "train"
    folders = (shards, tokenizers, work, tmp_path / "checkpoint")
    process = multiprocessing.get_context("spawn").Process(target=train_with_little_memory, args=folders)
    process.start()
    process.join()
    assert process.exitcode == 0
    (kept,) = (tmp_path / "work" / "micro-batch-sizes").iterdir()
    found = read_json(kept)
    assert 1 <= found["micro_batch_size"] < 128
    assert set(found["tries"].values()) == {True, False}
    job = Job.read(work / "job.json")
    assert job.training.parallel.micro_batch_size == found["micro_batch_size"]

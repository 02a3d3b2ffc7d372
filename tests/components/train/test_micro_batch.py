"""How many images fit is found by trying, with few tries, and is not tried again."""

import multiprocessing
import resource
from pathlib import Path

import pytest

from common.errors import TrainingError
from common.files import read_json
from components.train.job import Job
from components.train.launcher import RankCommand
from components.train.micro_batch import fitting_micro_batch, largest_that_fits
from components.train.train import train
from tests.components.patterns import MODEL
from tests.components.train.trainings import settings


class Memory:
    """Starts nothing: a micro-batch up to `fits` images ends well, a larger one leaves what a rank without memory does."""

    def __init__(self, fits: int, *, broken: bool = False):
        self._fits, self._broken, self.nodes = fits, broken, 1
        self.tried: list[int] = []

    def run(self, ranks: RankCommand) -> None:
        job = Job.read(Path(ranks.arguments[0]))
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


def test_what_was_found_is_kept_by_model_layout_and_machine(job: Job, tmp_path: Path) -> None:
    moved = job.model_copy(update={"work": tmp_path / "work"})
    memory = Memory(fits=20)
    assert fitting_micro_batch(moved, memory, 48, tmp_path / "cache") == 16
    assert 16 in memory.tried and 24 in memory.tried
    again = Memory(fits=0)
    assert fitting_micro_batch(moved, again, 48, tmp_path / "cache") == 16 and not again.tried
    wider = moved.model_copy(update={"model": moved.model.model_copy(update={"intermediate_size": 64})})
    assert fitting_micro_batch(wider, Memory(fits=3), 48, tmp_path / "cache") == 3
    assert len(list((tmp_path / "cache").iterdir())) == 2


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

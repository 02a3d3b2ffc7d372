"""States on the disk: whole or not there, the newest kept, damage noticed."""

import errno
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import DiskFullError, TrainingError
from components.train import states as module
from components.train.states import StateFiles, States
from model.parallel.engine import Engine
from model.parallel.layout import ParallelLayout


class Held:
    """What a rank of one stage knows, in the place of an engine."""

    def __init__(self, layout: ParallelLayout | None = None, stage: int = 0):
        self.place = SimpleNamespace(holds_whole=True, stage=stage, data=0, layout=layout or ParallelLayout())
        self.options = SimpleNamespace(zero=0)
        self.value, self.restored = 0.0, dict[str, float]()

    def weights(self) -> dict[str, Tensor]:
        return {f"w{self.place.stage}": torch.full((3,), self.value)}

    def optimizer_state(self) -> dict[str, Tensor]:
        return {f"exp_avg:w{self.place.stage}": torch.full((3,), -self.value)}

    def restore(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        self.restored = {name: tensor[0].item() for name, tensor in {**weights, **state}.items()}


@pytest.fixture(autouse=True, scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A group of one rank."""
    file = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def states(work: Path, held: Held, fingerprint: str = "a", **changes: Any) -> States:
    return States(
        work,
        {"model": "the same", "data": fingerprint},
        cast(Engine[Any], held),
        **({"kept": 2, "timeout_s": 20} | changes),
    )


def save(work: Path, *steps: int) -> Held:
    held = Held()
    saving = states(work, held)
    for step in steps:
        held.value = float(step)
        saving.save(step)
    saving.wait()
    return held


def test_the_newest_state_comes_back_and_older_ones_go(tmp_path: Path) -> None:
    save(tmp_path, 1, 2, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state-00000002", "state-00000003"]
    held = Held()
    assert states(tmp_path, held).restore() == 3
    assert held.restored == {"w0": 3.0, "exp_avg:w0": -3.0}


def test_a_state_of_another_training_is_passed_over_and_why_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    assert states(tmp_path, Held(), "b").restore() == 0
    assert "is of a training with other data: passed over" in caplog.text


def test_states_of_others_are_neither_counted_nor_touched(tmp_path: Path) -> None:
    """Newer ones of other settings would otherwise push out what was just written."""
    other = states(tmp_path, Held(), "another training")
    for step in (8, 9):
        other.save(step)
    other.wait()
    save(tmp_path, 1, 2, 3)
    names = [f"state-{step:08d}" for step in (2, 3, 8, 9)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert states(tmp_path, Held()).restore() == 3


def test_saving_does_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, go = Held(), threading.Event()
    real = module.save_tensors

    def slow(path: Path, tensors: dict[str, Tensor]) -> None:
        assert go.wait(20)
        real(path, tensors)

    monkeypatch.setattr(module, "save_tensors", slow)
    saving = states(tmp_path, held)
    held.value = 1.0
    saving.save(1)
    held.value = 2.0  # what is trained meanwhile is not in it
    assert states(tmp_path, Held(), "b").restore() == 0
    go.set()
    saving.wait()
    assert states(tmp_path, held).restore() == 1
    assert held.restored["w0"] == 1.0


def test_fault_08_an_unfinished_state_has_no_name_and_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def torn(path: Path, tensors: dict[str, Tensor]) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.EIO, "the machine goes down")

    with monkeypatch.context() as patched:
        patched.setattr(module, "save_tensors", torn)
        saving = states(tmp_path, Held())
        saving.save(2)
        with pytest.raises(TrainingError, match="the machine goes down"):
            saving.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".state-00000002", "state-00000001"]
    assert states(tmp_path, Held()).restore() == 1
    assert [path.name for path in tmp_path.iterdir()] == ["state-00000001"]


@pytest.mark.parametrize("damage", ["one byte", "cut", "gone", "no json"])
def test_fault_09_a_corrupt_newest_state_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1, 2)
    file = tmp_path / "state-00000002" / ("state.json" if damage == "no json" else "stage-0.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "one byte":
        content[-1] ^= 1
    file.write_bytes(b"{" if damage == "no json" else content[:40] if damage == "cut" else content)
    if damage == "gone":
        file.unlink()
    held = Held()
    assert states(tmp_path, held).restore() == 1
    assert held.restored["w0"] == 1.0
    assert "falling back to the one before" in caplog.text


def test_fault_26_a_full_disk_is_told_and_the_state_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)

    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("safetensors.torch.save_file", full)
        saving = states(tmp_path, Held())
        saving.save(2)
        with pytest.raises(DiskFullError, match="no space left"):
            saving.save(3)
    assert states(tmp_path, Held()).restore() == 1


def test_a_state_is_complete_when_every_stage_has_written_its_part(tmp_path: Path) -> None:
    both = ParallelLayout(pipeline=2)
    first, second = (states(tmp_path, Held(both, stage)) for stage in (0, 1))
    first.save(4)
    assert not list(tmp_path.glob("state-*"))
    second.save(4)
    second.wait()
    first.wait()
    with StateFiles(tmp_path / "state-00000004") as tensors:
        assert set(tensors) == {"weights:w0", "weights:w1", "optimizer:exp_avg:w0", "optimizer:exp_avg:w1"}


def test_a_stage_that_never_writes_is_an_error(tmp_path: Path) -> None:
    saving = states(tmp_path, Held(ParallelLayout(pipeline=2)), timeout_s=0.2)
    saving.save(1)
    with pytest.raises(TrainingError, match=r"a stage has not written its part in 0\.2 s"):
        saving.wait()
    assert not list(tmp_path.glob("state-*"))

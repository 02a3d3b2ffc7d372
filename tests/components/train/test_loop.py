"""What happens around a step: skipped ones, the curves, an early end, a sign of life."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from common.errors import TrainingError
from components.train import heartbeat
from components.train.batches import LessonSource
from components.train.curves import Curves, points
from components.train.evaluation import EVALUATED, Evaluation, evaluated_before
from components.train.heartbeat import Heartbeat
from components.train.loop import Every, train_steps
from components.train.meter import Meter
from model.objectives.lesson import Lesson
from model.parallel.engine import Engine, Step
from model.transformer.config import GeneratorConfig
from tests.components.train.trainings import settings

SHAPE = GeneratorConfig()


class Steps:
    """An engine whose losses are given; None is a step that is skipped."""

    def __init__(self, losses: Sequence[float | None], heldout: Sequence[float] = ()):
        self._losses, self._heldout = list(losses), list(heldout)
        self.parts: list[Any] = []
        self.optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.0)

    def step(self, lessons: object) -> Step:
        loss = self._losses.pop(0)
        finite = math.nan if loss is None else loss
        return Step(finite, {"coarse_loss": finite}, finite, loss is not None)

    def evaluate(self, lessons: object) -> float:
        return self._heldout.pop(0)


def run(engine: Steps, callbacks: Sequence[Any], tmp_path: Path, first_step: int = 0, **changes: Any) -> int:
    pulse = Heartbeat(tmp_path / "ranks", 0, 1, timeout_s=60)
    lessons = cast(LessonSource, SimpleNamespace(lessons=lambda step: []))
    try:
        return train_steps(cast("Engine[Lesson]", engine), lessons, settings(**changes), first_step, callbacks, pulse)
    finally:
        pulse.close()


def meter(tmp_path: Path, **changes: Any) -> Meter:
    curves = Curves(tmp_path / "curves.jsonl", 0)
    return Meter(settings(**changes), SHAPE, curves, first_step=0, samples=100, parameters=1000, ranks=1)


def test_skipped_steps_are_counted_and_not_in_the_curve(tmp_path: Path) -> None:
    told = meter(tmp_path, steps=4, log_every_steps=2)
    assert run(Steps([2.0, None, None, 4.0]), [told], tmp_path, steps=4) == 4
    first, last = points(tmp_path / "curves.jsonl")
    assert (first["coarse_loss"], first["steps_skipped"], first["gradient_norm"]) == (2.0, 1, 2.0)
    assert (last["coarse_loss"], last["steps_skipped"]) == (4.0, 2)
    assert last["epoch"] == pytest.approx(4 * 8 / 100) and last["tokens_per_second"] > last["images_per_second"] > 0
    json.dumps(told.last, allow_nan=False)


def test_a_training_that_goes_on_counts_what_came_before(tmp_path: Path) -> None:
    told = meter(tmp_path, steps=6, log_every_steps=5, checkpoint_every_steps=3)
    run(Steps([None, 1.0, 1.0, None]), [told], tmp_path, steps=4)
    seconds = told.seconds
    curves = Curves(tmp_path / "curves.jsonl", 3)  # the newest state's: the fourth step is done again
    again = Meter(
        settings(steps=6, log_every_steps=5), SHAPE, curves, first_step=3, samples=100, parameters=1000, ranks=1
    )
    assert again.last["steps_skipped"] == 1 and again.seconds == seconds > 0
    run(Steps([None, None, 1.0]), [again], tmp_path, first_step=3, steps=6)
    assert again.last["steps_skipped"] == 3 and again.seconds > seconds


def test_too_many_skipped_steps_in_a_row_end_it(tmp_path: Path) -> None:
    assert run(Steps([None, 1.0, None, 1.0]), [], tmp_path, steps=4, largest_skips=2) == 4
    with pytest.raises(TrainingError, match="2 steps in a row"):
        run(Steps([1.0, None, None, 1.0]), [], tmp_path, steps=4, largest_skips=2)


def test_states_are_saved_every_so_many_steps_but_after_the_last(tmp_path: Path) -> None:
    saved: list[int] = []
    run(Steps([1.0] * 9), [Every(3, 9, saved.append)], tmp_path, steps=9)
    assert saved == [3, 6]


def test_a_heldout_loss_that_no_longer_falls_ends_it(tmp_path: Path) -> None:
    told = meter(tmp_path, steps=20)
    changes = {"steps": 20, "evaluate_every_steps": 2, "early_stop_after": 2}
    engine = Steps([1.0] * 20, heldout=[3.0, 2.0, 2.5, 2.2, 1.0])
    heldout = cast(Any, SimpleNamespace(lessons=list))
    evaluation = Evaluation(cast("Engine[Lesson]", engine), heldout, settings(**changes), told.curves)
    assert run(engine, [told, evaluation], tmp_path, **changes) == 8
    told.close(8)
    assert told.last["coarse_loss"] == 1.0
    assert evaluated_before(tmp_path / "curves.jsonl", 6) == [3.0, 2.0, 2.5]
    again = Evaluation(
        cast("Engine[Lesson]", Steps([], heldout=[2.1])), heldout, settings(**changes), None, [3.0, 2.0, 2.5]
    )
    assert again.after(8, Step(1.0, {}, 1.0, True))


def test_a_torn_line_of_the_curves_is_left_out(tmp_path: Path) -> None:
    file = tmp_path / "curves.jsonl"
    file.write_text('{"step": 1, "coarse_loss": 2.0}\n{"step": 2, "coar')
    Curves(file, 5).log(6, coarse_loss=1.0)
    assert [point["step"] for point in points(file)] == [1, 6] and EVALUATED not in points(file)[0]


def test_the_rank_that_is_behind_or_silent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.02)
    monkeypatch.setattr(heartbeat, "_OLD_S", 0.5)
    beats = [Heartbeat(tmp_path, rank, 3, timeout_s=60) for rank in range(3)]
    for rank, beat in enumerate(beats):
        beat.begin(7, "data" if rank == 1 else "step")
    assert beats[0].who_hangs() == "rank 1 is at 'data' of step 8"
    beats[1].begin(7, "step")
    assert beats[0].who_hangs() == "all ranks are in step 8"
    beats[2]._ended.set()  # its thread stands still, as all of it would
    time.sleep(0.1)
    assert beats[0].who_hangs() == "rank 2 has given no sign of life for 0.5 s"
    (tmp_path / "1").unlink()
    beats[1].close()
    assert beats[0].who_hangs() == "rank 1 has ended"
    beats[0].close()


def test_who_waits_long_says_so_before_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(heartbeat, "_EVERY_S", 0.02)
    monkeypatch.setattr(heartbeat, "_OLD_S", 0.2)
    beat = Heartbeat(tmp_path, 0, 1, timeout_s=0.5)
    beat.begin(3, "step")
    time.sleep(1)
    beat.close()
    assert caplog.text.count("rank 0 waits for the others since long: all ranks are in step 4") == 1

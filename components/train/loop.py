"""The training loop, and what happens around a step."""

import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch.distributed as dist

from common.errors import TrainingError
from components.train.batches import LessonSource
from components.train.heartbeat import Heartbeat
from components.train.optimizer import learning_rate_at, set_learning_rate
from components.train.settings import OptimizationSettings
from model.objectives.lesson import Lesson
from model.parallel.engine import Engine, Step
from model.transformer.model import Generator
from model.transformer.plan import Plan

_log = logging.getLogger(__name__)


class Callback(Protocol):
    """Something that happens after steps; on every rank, in the same order."""

    def after(self, done: int, step: Step) -> bool | None:
        """`done` steps are done; the last one found `step`. True ends the training, if all ranks say so."""
        ...


def train_steps(
    engine: Engine[Lesson],
    lessons: LessonSource,
    settings: OptimizationSettings,
    first_step: int,
    callbacks: Sequence[Callback],
    pulse: Heartbeat,
) -> int:
    """Train from `first_step` to the last one, or until a callback ends it; the number of steps that are done.

    Raises `TrainingError` where too many steps in a row are skipped.
    """
    skipped = 0
    for number in range(first_step, settings.steps):
        frozen = number >= settings.plan_frozen_from * settings.steps
        if frozen:
            freeze_plans(engine)
        rate = learning_rate_at(number, settings)
        set_learning_rate(engine.optimizer, rate, plan_encoder=0.0 if frozen else rate)
        pulse.begin(number, "data")
        asked = lessons.lessons(number)
        pulse.begin(number, "step")
        step = engine.step(asked)
        skipped = 0 if step.stepped else skipped + 1
        if not step.stepped:
            _log.warning("step %d is skipped: a gradient is not finite (loss %g)", number + 1, step.loss)
        if skipped >= settings.largest_skips:
            raise TrainingError(
                f"{skipped} steps in a row had gradients that are not finite, up to step {number + 1}",
                where="training",
                fix="lower training.learning_rate, or look at the data of these steps",
            )
        ended = [callback.after(number + 1, step) for callback in callbacks]
        if any(ended):
            return number + 1
    return settings.steps


def freeze_plans(engine: Engine[Lesson]) -> None:
    """No plan changes any more, and all ranks give an image the same one: their batches' means and variances differ. Those
    of the first rank stay, which a state holds: a training that was interrupted goes on with them."""
    for part in engine.parts:
        plan = part.plan if isinstance(part, Generator) else None
        if plan is None or plan.frozen:
            continue
        plan.freeze()
        if plan.has_encoder:
            _agree(plan, engine)


def _agree(plan: Plan, engine: Engine[Lesson]) -> None:
    for buffer in plan.encoder.buffers():
        dist.broadcast(buffer, group=engine.place.data_group, group_src=0)


class Every:
    """Calls a function after every n-th step, but the last."""

    def __init__(self, steps: int, last: int, do: Callable[[int], None]):
        self._steps, self._last, self._do = steps, last, do

    def after(self, done: int, step: Step) -> None:
        if done % self._steps == 0 and done < self._last:
            self._do(done)

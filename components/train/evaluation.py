"""The held-out loss while a training goes on, and an end to one that no longer gets better."""

import logging
from collections.abc import Sequence
from pathlib import Path

from components.train.batches import HeldoutLessons
from components.train.curves import Curves, points
from components.train.settings import OptimizationSettings
from model.objectives.lesson import Lesson
from model.parallel.engine import Engine, Step

EVALUATED = "heldout_loss_under_training"
"""Of a point in the curves. Under the training's own masks: it compares points of one training, not models."""
_log = logging.getLogger(__name__)


class Evaluation:
    """A callback on every rank; all of them know the same loss, and so end together."""

    def __init__(
        self,
        engine: Engine[Lesson],
        heldout: HeldoutLessons,
        settings: OptimizationSettings,
        curves: Curves | None,
        before: Sequence[float] = (),
    ):
        """`curves` are rank 0's; `before` are the losses of a training that goes on, from its start."""
        self._engine, self._lessons, self._settings, self._curves = engine, heldout.lessons(), settings, curves
        self._best, self._worse = float("inf"), 0
        for loss in before:
            self._count(loss)

    def after(self, done: int, step: Step) -> bool:
        """Whether the training is to end."""
        if done % self._settings.evaluate_every_steps:
            return False
        loss = self._engine.evaluate(self._lessons)
        if self._curves is not None:
            self._curves.log(done, **{EVALUATED: loss})
        self._count(loss)
        _log.info("step %d: held-out loss %.4f, the best %.4f", done, loss, self._best)
        return self.no_better

    @property
    def no_better(self) -> bool:
        """Whether the last `early_stop_after` evaluations were not below the best one."""
        patience = self._settings.early_stop_after
        return patience > 0 and self._worse >= patience

    def _count(self, loss: float) -> None:
        self._best, self._worse = (loss, 0) if loss < self._best else (self._best, self._worse + 1)


def evaluated_before(curves_file: Path, first_step: int) -> list[float]:
    """What the curves of a training that goes on say of it."""
    return [point[EVALUATED] for point in points(curves_file) if EVALUATED in point and point["step"] <= first_step]

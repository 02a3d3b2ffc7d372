"""What a step asks: a pure function of the seed and the step, whatever ranks there are.

A step's images are cut into micro-batches, numbered over all data-parallel ranks; each has masks of its own number. So a
training that computes as many images at once goes on the same way in another layout.
"""

import torch

from components.train.settings import OptimizationSettings
from components.train.sizes import micro_batch_size
from model.data.grids import read_grids
from model.data.shards import Shards, epoch_order
from model.objectives.lesson import Lesson, draw_lesson
from model.objectives.masked import drop_prompts
from model.objectives.settings import Objective
from model.transformer.config import GeneratorConfig


class LessonSource:
    """Draws the lessons of one data-parallel rank from memory-mapped shards."""

    def __init__(
        self,
        shards: Shards,
        settings: OptimizationSettings,
        shape: GeneratorConfig,
        objective: Objective,
        unconditional_prompt: tuple[int, ...],
        *,
        rank: int,
        ranks: int,
    ):
        self.shards, self.settings, self.shape = shards, settings, shape
        self.objective: Objective = objective
        self._unconditional_prompt, self.rank, self.ranks = unconditional_prompt, rank, ranks
        self.micro_batch = micro_batch_size(settings, shape, objective, ranks)
        self._order_epoch, self._order = -1, None

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step on each rank."""
        return self.settings.global_batch_size // self.ranks // self.micro_batch

    def lessons(self, step: int) -> list[Lesson]:
        """This rank's micro-batches of one step."""
        return [self._lesson(step, self.rank + self.ranks * number) for number in range(self.accumulation)]

    def _lesson(self, step: int, number: int) -> Lesson:
        settings, fine_rows = self.settings, 0
        masks = torch.Generator().manual_seed(((settings.seed * 1_000_003 + step) * 4096 + number) % 2**63)
        first = step * settings.global_batch_size + number * self.micro_batch
        rows = [self._row(position) for position in range(first, first + self.micro_batch)]
        batch = read_grids(self.shards, rows, self.shape)
        batch = drop_prompts(batch, settings.masking.unconditional_share, self._unconditional_prompt, masks)
        if step % settings.fine_every_steps == 0 and self.shape.fine_layers:
            fine_rows = max(1, round(self.micro_batch * settings.fine_batch_share))
        return draw_lesson(self.objective, batch, self.shape, settings.masking, masks, fine_rows)

    def _row(self, position: int) -> int:
        epoch, index = divmod(position, len(self.shards))
        if epoch != self._order_epoch:
            self._order_epoch, self._order = epoch, epoch_order(self.settings.seed, epoch, len(self.shards))
        assert self._order is not None
        return int(self._order[index])


class HeldoutLessons:
    """The same questions about held-out samples each time; one data-parallel rank's."""

    _SEED = 20_240_602

    def __init__(self, training: LessonSource, heldout: Shards):
        self._training, self._heldout = training, heldout

    def lessons(self) -> list[Lesson]:
        """In micro-batches as large as the training's, as many on each rank: what is left over is not asked, and where there
        are too few samples they are asked twice."""
        source, size = self._training, self._training.micro_batch
        count = max(1, len(self._heldout) // (size * source.ranks))
        return [self._lesson(source.rank + source.ranks * number) for number in range(count)]

    def _lesson(self, number: int) -> Lesson:
        source, size = self._training, self._training.micro_batch
        rows = [position % len(self._heldout) for position in range(number * size, (number + 1) * size)]
        grids = read_grids(self._heldout, rows, source.shape)
        draws = torch.Generator().manual_seed(self._SEED + number)
        fine_rows = size if source.shape.fine_layers else 0
        return draw_lesson(source.objective, grids, source.shape, source.settings.masking, draws, fine_rows)

"""What a batch asks of the model, drawn before the model sees it.

A lesson is drawn on the CPU from a seed, without any weights: ranks that hold different layers of one model each draw the
whole of it, and the first of them embeds it while the last one marks it (`losses.py`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.grids import Grids
from model.objectives.masked import corrupt, draw_mask, draw_replacements
from model.objectives.settings import MaskingSettings, Objective
from model.transformer.config import GeneratorConfig


@dataclass(frozen=True)
class Question:
    """Cells that are to be predicted."""

    shown: Tensor
    """What the model sees: int64 [b, cells] of a sketch, [b, cells, 4] of details, the mask id where it sees nothing."""
    hidden: Tensor
    """What it is asked: bool [b, cells]."""
    truth: Tensor
    """int64, shaped as `shown`."""


@dataclass(frozen=True)
class DetailQuestion(Question):
    """A stage of details, of the first rows of the batch."""

    cells: Tensor
    """The grid before it, slightly damaged: int64 [b, cells]."""


@dataclass(frozen=True)
class PlanQuestion:
    """The images, of which the model's encoder makes plans, and which of their codes are shown as others."""

    image: Grids
    replaced: Tensor
    """bool [b, plan_tokens]."""
    others: Tensor
    """int64 [b, plan_tokens]."""


@dataclass(frozen=True)
class Lesson:
    """One batch of an objective."""

    objective: Objective
    text_ids: Tensor
    """int64 [b, text_length]."""
    sketch: Question
    details: tuple[DetailQuestion, ...]
    """By stage; none where only the sketch is asked."""
    plan: PlanQuestion | None
    """None for a shape without a plan, and where cells are predicted one after another."""
    label_smoothing: float = 0.0

    def map(self, change: Callable[[Tensor], Tensor]) -> "Lesson":
        """The same change made to every tensor."""
        plan = self.plan
        return Lesson(
            self.objective,
            change(self.text_ids),
            Question(*map(change, (self.sketch.shown, self.sketch.hidden, self.sketch.truth))),
            tuple(
                DetailQuestion(*map(change, (each.shown, each.hidden, each.truth, each.cells))) for each in self.details
            ),
            plan and PlanQuestion(plan.image.map(change), change(plan.replaced), change(plan.others)),
            self.label_smoothing,
        )

    def to(self, device: torch.device) -> "Lesson":
        return self.map(lambda tensor: tensor.to(device))

    def tensors(self) -> tuple[Tensor, ...]:
        """All of it but what every lesson of a training has in common; `from_tensors` is the way back."""
        asked = [self.text_ids, self.sketch.shown, self.sketch.hidden, self.sketch.truth]
        for each in self.details:
            asked += [each.shown, each.hidden, each.truth, each.cells]
        if self.plan is not None:
            asked += [*self.plan.image.cells, *self.plan.image.details, self.plan.replaced, self.plan.others]
        return tuple(asked)

    @classmethod
    def from_tensors(
        cls, tensors: Sequence[Tensor], objective: Objective, shape: GeneratorConfig, label_smoothing: float
    ) -> "Lesson":
        text_ids, *rest = tensors
        sketch, rest, plan = Question(*rest[:3]), rest[3:], None
        if objective == "parallel" and shape.plan_tokens:
            stages = len(shape.grids) - 1
            cells = max(stages, 1)
            *rest, replaced, others = rest
            first = len(rest) - cells - stages
            image = Grids(text_ids, tuple(rest[first : first + cells]), tuple(rest[first + cells :]))
            rest, plan = rest[:first], PlanQuestion(image, replaced, others)
        details = tuple(DetailQuestion(*rest[i : i + 4]) for i in range(0, len(rest), 4))
        return cls(objective, text_ids, sketch, details, plan, label_smoothing)


def draw_lesson(
    objective: Objective,
    grids: Grids,
    shape: GeneratorConfig,
    settings: MaskingSettings,
    generator: torch.Generator,
    fine_rows: int,
) -> Lesson:
    """What `objective` asks about `grids`, with the details of the first `fine_rows` images; drawn by `generator` alone."""
    if objective == "next_token":
        return _next_token_lesson(grids, shape, settings, generator, fine_rows)
    plan = _plan_question(grids, shape, settings, generator)
    batch, cells = grids.coarse.shape
    hidden = draw_mask(batch, cells, settings.coarse_blank_share, generator)
    visible = corrupt(grids.coarse, settings.corruption, shape.visual_vocabulary, generator)
    shown = torch.where(hidden, shape.visual_vocabulary, visible)
    details = _detail_questions(grids, shape, settings, generator, fine_rows)
    sketch = Question(shown, hidden, grids.coarse)
    return Lesson("parallel", grids.text_ids, sketch, details, plan, settings.label_smoothing)


def _next_token_lesson(
    grids: Grids, shape: GeneratorConfig, settings: MaskingSettings, generator: torch.Generator, fine_rows: int
) -> Lesson:
    """Each cell is asked given the true ones before it, but `corruption` of them; without a plan."""
    visible = corrupt(grids.coarse, settings.corruption, shape.visual_vocabulary, generator)
    start = torch.full_like(visible[:, :1], shape.visual_vocabulary)
    shown = torch.cat([start, visible[:, :-1]], 1)
    sketch = Question(shown, torch.ones_like(shown, dtype=torch.bool), grids.coarse)
    details = _detail_questions(grids, shape, settings, generator, fine_rows)
    return Lesson("next_token", grids.text_ids, sketch, details, None, settings.label_smoothing)


def _plan_question(
    grids: Grids, shape: GeneratorConfig, settings: MaskingSettings, generator: torch.Generator
) -> PlanQuestion | None:
    if not shape.plan_tokens:
        return None
    size = len(grids.coarse), shape.plan_tokens
    return PlanQuestion(grids, *draw_replacements(size, settings.plan_corruption, shape.visual_vocabulary, generator))


def _detail_questions(
    grids: Grids, shape: GeneratorConfig, settings: MaskingSettings, generator: torch.Generator, rows: int
) -> tuple[DetailQuestion, ...]:
    """Of the first `rows` images; of a quarter as many for each further stage, as an image has four times the cells there."""
    if not rows:
        return ()
    taken = (max(1, rows >> 2 * stage) for stage in range(len(grids.details)))
    return tuple(
        detail_question(grids.first(count), shape, settings, generator, stage)
        for stage, count in enumerate(taken, start=1)
    )


def detail_question(
    grids: Grids, shape: GeneratorConfig, settings: MaskingSettings, generator: torch.Generator, stage: int = 1
) -> DetailQuestion:
    """The masked blocks of a stage, given the slightly damaged grid before it."""
    before, blocks = grids.cells[stage - 1], grids.details[stage - 1]
    batch, tokens = before.shape
    cells = corrupt(before, settings.corruption, shape.visual_vocabulary, generator)
    hidden = draw_mask(batch, tokens, settings.fine_blank_share, generator)
    shown = torch.where(hidden[..., None], shape.visual_vocabulary, blocks)
    return DetailQuestion(shown, hidden, blocks, cells)

"""A lesson's way through the model: embedded, taken through the blocks one by one, answered, marked.

Each of the four is a function of its own because layers of one model may lie on different machines
(`model/parallel/stages.py`); `lesson_losses` is all of them on one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from model.decoding.loop import stage_name
from model.objectives.lesson import DetailQuestion, Lesson
from model.objectives.settings import Objective
from model.transformer.embeddings import CodeLoss
from model.transformer.model import Generator, Path


class Activations(NamedTuple):
    """What passes from block to block."""

    sketch: Tensor
    """Prompts and the cells of their sketches: [b, text_length + cells, hidden]."""
    details: tuple[Tensor, ...]
    """Of each stage that is asked, of the first rows of the batch: [rows, text_length + cells, hidden]."""
    plan_codes: Tensor | None
    """The true plans, int64 [b, plan_tokens]: settled where the lesson is embedded, asked where it is marked."""


def embed(model: Generator, lesson: Lesson) -> Activations:
    """What the first block is given."""
    plan, codes = seen_plan(model, lesson)
    sketch = model.embed_sketch(lesson.text_ids, lesson.sketch.shown, plan)
    details = []
    for stage, asked in enumerate(lesson.details, start=1):
        rows = len(asked.cells)
        shown = None if plan is None else plan[:rows]
        details.append(model.embed_details(lesson.text_ids[:rows], asked.cells, asked.shown, shown, stage))
    return Activations(sketch, tuple(details), codes)


def seen_plan(model: Generator, lesson: Lesson) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """The images' own plans as training shows them, some of their tokens replaced: values [b, p, channels]; and the true
    codes, int64 [b, p]. None where no plan is asked."""
    asked = lesson.plan
    if model.plan is None or asked is None:
        return None, None
    values = model.plan.encode(asked.image.coarse, asked.image.details)
    codes = model.plan.codes(values)
    other = torch.where(asked.replaced, asked.others, codes)
    return torch.where((other == codes)[..., None], values, model.plan.values(other)), codes


class Paths(NamedTuple):
    """How a lesson's grids go through every block."""

    sketch: Path
    details: tuple[Path, ...]


def paths(model: Generator, objective: Objective, details: int) -> Paths:
    """The ways of a lesson with so many stages of details."""
    config = model.config
    causal = objective == "next_token"
    sketch = model.causal_path(config.text_length + config.coarse_tokens) if causal else model.sketch_path()
    return Paths(sketch, tuple(model.detail_path(stage) for stage in range(1, details + 1)))


def advance(model: Generator, number: int, activations: Activations, ways: Paths) -> Activations:
    """Through the block of that number: the sketch through all blocks, the details through the first `fine_layers`."""
    sketch, details = model.pass_block(number, activations.sketch, ways.sketch), activations.details
    if number < model.config.fine_layers:
        details = tuple(model.pass_block(number, x, way) for x, way in zip(details, ways.details, strict=True))
    return Activations(sketch, details, activations.plan_codes)


class Answers(NamedTuple):
    """Logits of what a lesson asks; with tensor parallel, of the codes that lie on this rank."""

    sketch: Tensor
    """[b, cells, codes]."""
    details: tuple[Tensor, ...]
    """By stage, [rows, cells, 4, codes]."""
    plan: Tensor | None
    """[b, plan_tokens, codes], all of them on every rank."""
    plan_codes: Tensor | None
    """The true ones, int64 [b, plan_tokens]."""


def answer(model: Generator, activations: Activations) -> Answers:
    """What the model says, from the last block's activations."""
    logits, last = model.read_sketch(activations.sketch)
    details, codes = tuple(map(model.read_details, activations.details)), activations.plan_codes
    plan = model.plan.prior.logits(last, codes) if model.plan is not None and codes is not None else None
    return Answers(logits, details, plan, codes)


def mark(answers: Answers, lesson: Lesson, code_loss: CodeLoss) -> dict[str, Tensor]:
    """Mean cross-entropies (nats a token): `coarse_loss` of the sketch's hidden tokens, `plan_loss` of the plan given the
    prompt, for a shape that has one, and a `fine_loss` for each stage of details that is asked."""
    hidden, truth = lesson.sketch.hidden, lesson.sketch.truth
    losses = {"coarse_loss": code_loss(answers.sketch[hidden], truth[hidden], lesson.label_smoothing)}
    if answers.plan is not None and answers.plan_codes is not None:
        losses["plan_loss"] = F.cross_entropy(answers.plan.flatten(0, 1).float(), answers.plan_codes.flatten())
    for stage, (logits, asked) in enumerate(zip(answers.details, lesson.details, strict=True), start=1):
        losses[f"{stage_name(stage)}_loss"] = detail_loss(logits, asked, code_loss)
    return losses


def detail_loss(logits: Tensor, asked: DetailQuestion, code_loss: CodeLoss) -> Tensor:
    """Mean cross-entropy (nats) of the hidden blocks of a stage: logits [rows, cells, 4, codes]."""
    return code_loss(logits[asked.hidden].flatten(0, 1), asked.truth[asked.hidden].flatten())


def lesson_losses(model: Generator, lesson: Lesson, *, checkpointing: bool = False) -> dict[str, Tensor]:
    """`mark` of what a whole model answers; with `checkpointing`, what is inside a block is computed again in the backward
    pass rather than kept."""
    activations, ways = embed(model, lesson), paths(model, lesson.objective, len(lesson.details))
    for number in range(model.config.num_hidden_layers):
        if checkpointing:
            activations = checkpoint(advance, model, number, activations, ways, use_reentrant=False)
        else:
            activations = advance(model, number, activations, ways)
    return mark(answer(model, activations), lesson, model.code_loss)

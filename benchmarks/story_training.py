"""How the story generators are trained: the gated one and its ungated twin, and what turns their sketches into images.

The twins differ in the gate alone: the same seed, stories, steps, losses and optimizer. Stories grow as the training goes
on, since a model that cannot yet tell two scenes apart learns nothing from twenty-six.
"""

import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.stories import Dealer, SceneTokens
from components.train.optimizer import learning_rate_at, make_optimizer, set_learning_rate, use_bf16
from components.train.settings import OptimizationSettings
from model.data.grids import Grids
from model.decoding.loop import pack_blocks
from model.objectives.lesson import detail_question
from model.objectives.losses import detail_loss
from model.objectives.settings import MaskingSettings
from model.objectives.story import Pressure, StoryLossSettings, story_loss
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.story import StoryGenerator
from model.transformer.story_config import StoryConfig

SCENES = 26
"""Earlier scenes of a story: 26 x (16 + 64) = 2,080 tokens."""
TRAINING_STORIES = 400
_SEED = 0
_LOG_EVERY = 50


class Lesson(NamedTuple):
    """Part of a curriculum: every step encodes `stories` stories of `scenes` scenes and asks each `requests` times."""

    steps: int
    stories: int
    scenes: int
    requests: int


CURRICULUM = (Lesson(800, 4, 4, 4), Lesson(200, 2, 10, 5), Lesson(800, 1, SCENES, 8))
DETAIL_STEPS, DETAIL_BATCH = 800, 16


class Question(NamedTuple):
    """What one step asks: s stories of n scenes, r requests each."""

    captions: Tensor
    """int64 [s, n, text_length]."""
    sketches: Tensor
    """int64 [s, n, cells]."""
    requests: Tensor
    """int64 [s, r, text_length]."""
    which: Tensor
    """int64 [s, r]: the scene that each request means."""


def questions(pool: SceneTokens, curriculum: tuple[Lesson, ...], seed: int) -> Iterator[Question]:
    """What each step of a training asks; the same seed asks the same, whichever of the twins learns."""
    dealer = Dealer(pool.first, seed)
    for lesson in lessons_of(curriculum):
        rows = torch.from_numpy(dealer.deal(lesson.stories, lesson.scenes))
        which = torch.from_numpy(dealer.ask(lesson.stories, lesson.scenes, lesson.requests))
        yield Question(pool.captions[rows], pool.sketches[rows], pool.requests[rows.gather(1, which)], which)


def train_story(
    gated: bool, config: StoryConfig, pool: SceneTokens, curriculum: tuple[Lesson, ...] = CURRICULUM
) -> tuple[StoryGenerator, dict[str, float]]:
    """A trained generator, and its last losses."""
    settings = optimization(sum(lesson.steps for lesson in curriculum))
    torch.manual_seed(settings.seed)
    model = StoryGenerator(config.model_copy(update={"gated": gated})).train()
    weights, asked = StoryLossSettings(), questions(pool, curriculum, settings.seed)
    pressure = Pressure(weights)

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = story_loss(model, *next(asked), weights, pressure.value)
        pressure.update(parts["sketch"].item())
        return loss, parts

    last = optimize(model, settings, step, "gated" if gated else "ungated")
    return model.eval(), last


def train_details(config: GeneratorConfig, prompt: list[int], pool: SceneTokens) -> tuple[Generator, dict[str, float]]:
    """The details of any sketch, from the sketch alone: the main generator's detail pass under a prompt that says nothing."""
    settings = optimization(DETAIL_STEPS)
    torch.manual_seed(settings.seed)
    model = Generator(config).train()
    draws = torch.Generator().manual_seed(settings.seed)
    masking = MaskingSettings(fine_blank_share=1.0)
    text = torch.tensor(prompt).expand(DETAIL_BATCH, -1)
    fine = torch.from_numpy(pack_blocks(pool.details.numpy(), *config.coarse_grid))

    def step() -> tuple[Tensor, dict[str, Tensor]]:
        rows = torch.randint(len(pool), (DETAIL_BATCH,), generator=draws)
        asked = detail_question(Grids(text, (pool.sketches[rows],), (fine[rows],)), config, masking, draws)
        x = model.embed_details(text, asked.cells, asked.shown, None, 1)
        loss = detail_loss(model.read_details(model.through_details(x, 1)), asked, model.code_loss)
        return loss, {"details": loss}

    last = optimize(model, settings, step, "details")
    return model.eval(), last


def optimize(
    model: nn.Module,
    settings: OptimizationSettings,
    step_loss: Callable[[], tuple[Tensor, dict[str, Tensor]]],
    name: str,
) -> dict[str, float]:
    """All steps, in bf16 autocast where the processor has it; the parts of the loss, averaged over the last few."""
    optimizer = make_optimizer(model, settings)
    started, sums, last = time.monotonic(), {}, {}
    for step in range(settings.steps):
        set_learning_rate(optimizer, learning_rate_at(step, settings))
        with torch.autocast("cpu", torch.bfloat16, enabled=use_bf16(settings)):
            loss, parts = step_loss()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clipping)
        optimizer.step()
        for key, value in parts.items():
            sums[key] = sums.get(key, 0.0) + value.item()
        if (step + 1) % _LOG_EVERY == 0:
            last = {key: value / _LOG_EVERY for key, value in sums.items()}
            sums = {}
            shown = " ".join(f"{key} {value:.3f}" for key, value in last.items())
            print(f"{name} {step + 1}/{settings.steps} {time.monotonic() - started:.0f} s {shown}", file=sys.stderr)
    return last


def optimization(steps: int) -> OptimizationSettings:
    return OptimizationSettings(steps=steps, seed=_SEED)


def lessons_of(curriculum: tuple[Lesson, ...]) -> Iterator[Lesson]:
    """The lesson of each step."""
    for lesson in curriculum:
        for _ in range(lesson.steps):
            yield lesson

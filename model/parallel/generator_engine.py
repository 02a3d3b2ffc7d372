"""The generator in any layout."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from model.decoding.loop import stage_name
from model.objectives.lesson import Lesson
from model.objectives.losses import lesson_losses
from model.objectives.settings import Objective
from model.parallel.engine import Engine, EngineOptions, MakeOptimizer, PlainEngine, to_rank
from model.parallel.pipeline import StagedEngine
from model.parallel.place import take_place
from model.parallel.stages import GeneratorStages, LayerOptions, WeighLosses
from model.parallel.tensor import split_layers
from model.parallel.whole import load_whole
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator


@dataclass(frozen=True, kw_only=True)
class GeneratorTask:
    """What is trained."""

    shape: GeneratorConfig
    objective: Objective
    label_smoothing: float
    weigh: WeighLosses


def generator_engine(
    options: EngineOptions, task: GeneratorTask, make: MakeOptimizer, start: Mapping[str, Tensor] | None = None
) -> Engine[Lesson]:
    """`start` is the state dict of a whole model to start from; None: from the seed. All ranks call it."""
    place = take_place(options.layout)
    if options.layout.pipeline > 1:
        layers = LayerOptions(task.shape, task.objective, task.label_smoothing, options.seed, place.tensor)
        stages = GeneratorStages(layers, place.topology, task.weigh, checkpointing=options.checkpointing)
        if start is not None:
            load_whole(stages.own_parts(), start, place.tensor)
        return StagedEngine(replace(place, grid=stages.grid), stages, options, make, feed=_feed, names=loss_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        generator = Generator(task.shape).train()
    if place.tensor is not None:
        split_layers(generator, place.tensor, task.shape.visual_vocabulary)
    if start is not None:
        load_whole([generator], start, place.tensor)
    to_rank(generator, options)
    model = _Model(generator, task.weigh, checkpointing=options.checkpointing)
    return PlainEngine(place, [generator], model, options, make(model))


class _Model(nn.Module):
    """A lesson's losses, so that one forward pass of the plain engine is a micro-batch."""

    def __init__(self, generator: Generator, weigh: WeighLosses, *, checkpointing: bool):
        super().__init__()
        self.generator, self._weigh, self._checkpointing = generator, weigh, checkpointing

    def forward(self, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        losses = lesson_losses(self.generator, lesson, checkpointing=self._checkpointing)
        return self._weigh(losses), losses


def loss_names(lesson: Lesson) -> list[str]:
    """What `mark` calls the losses of a lesson."""
    plan = ["plan_loss"] if lesson.plan is not None else []
    return ["coarse_loss", *plan, *(f"{stage_name(stage)}_loss" for stage in range(1, len(lesson.details) + 1))]


def _feed(lesson: Lesson) -> tuple[Any, Any]:
    return lesson.tensors(), lesson

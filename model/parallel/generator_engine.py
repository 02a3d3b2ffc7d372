"""The generator in any layout."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from deepspeed.runtime.pipe.engine import PipelineEngine
from torch import Tensor, nn

from model.decoding.loop import stage_name
from model.objectives.lesson import Lesson
from model.objectives.losses import lesson_losses
from model.objectives.settings import Objective
from model.parallel.engine import Engine, EngineOptions, MakeOptimizer, PlainEngine, rank_device
from model.parallel.place import Place, take_place
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
        place = replace(place, grid=stages.grid)
        if start is not None:
            load_whole(stages.generators(), start, place.tensor)
        return StagedEngine(place, stages, options, make)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        generator = Generator(task.shape).train()
    if place.tensor is not None:
        split_layers(generator, place.tensor, task.shape.visual_vocabulary)
    if start is not None:
        load_whole([generator], start, place.tensor)
    model = _Model(generator.to(rank_device()), task.weigh, checkpointing=options.checkpointing)
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


class StagedEngine(Engine[Lesson]):
    """Some layers on every rank."""

    def __init__(self, place: Place, stages: GeneratorStages, options: EngineOptions, make: MakeOptimizer):
        super().__init__(place, stages.generators(), stages, options, make(stages))
        assert isinstance(self.deepspeed, PipelineEngine)
        self._stages, self._stages_of_details = stages, -1

    def train(self, batches: Sequence[Lesson]) -> tuple[float, dict[str, float]]:
        if len(batches[0].details) != self._stages_of_details:  # other shapes pass between the stages
            self._stages_of_details = len(batches[0].details)
            self.deepspeed.reset_activation_shape()
        self._stages.expect(loss_names(batches[0]))
        loss = self.deepspeed.train_batch(iter([(lesson.tensors(), lesson) for lesson in batches]))
        parts = self.deepspeed.agg_additional_losses
        return loss.item(), {name: part.item() for name, part in parts.items()}

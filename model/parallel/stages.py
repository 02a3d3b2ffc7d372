"""The generator as the layers of a pipeline.

Between layers go tuples of tensors: a lesson's own (`Lesson.tensors`) into the first, then its activations. The last
stage is given the lesson as its label.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from deepspeed.pipe import LayerSpec
from deepspeed.runtime.pipe.topology import ProcessTopology
from torch import Tensor, nn

from model.objectives.lesson import Lesson
from model.objectives.losses import Activations, Answers, advance, answer, embed, mark, paths
from model.objectives.settings import Objective
from model.parallel.pipeline import Stages
from model.parallel.tensor import SplitLoss, TensorRanks, split_layers
from model.transformer.config import GeneratorConfig
from model.transformer.embeddings import CodeLoss
from model.transformer.model import Generator
from model.transformer.part import HEAD, STEM, Part, one_block

WeighLosses = Callable[[dict[str, Tensor]], Tensor]
"""The one number that is made smaller, of the losses by name."""


@dataclass(frozen=True)
class LayerOptions:
    """What every layer is made of."""

    shape: GeneratorConfig
    objective: Objective
    label_smoothing: float
    seed: int
    tensor_ranks: TensorRanks | None

    def generator(self, part: Part, number: int) -> Generator:
        """A part of the model, from its own seed: layers start alike whichever rank they lie on."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * 1_000_003 + number)
            generator = Generator(self.shape, part)
        if self.tensor_ranks is not None:
            split_layers(generator, self.tensor_ranks, self.shape.visual_vocabulary)
        return generator.train()


class StemLayer(nn.Module):
    """Embeds a lesson."""

    def __init__(self, options: LayerOptions):
        super().__init__()
        self.options, self.part = options, options.generator(STEM, options.shape.num_hidden_layers)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        options = self.options
        return pack(
            embed(self.part, Lesson.from_tensors(tensors, options.objective, options.shape, options.label_smoothing))
        )


class BlockLayer(nn.Module):
    """One block."""

    def __init__(self, options: LayerOptions, number: int):
        super().__init__()
        self.options, self.number, self.part = options, number, options.generator(one_block(number), number)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        activations = unpack(tensors)
        ways = paths(self.part, self.options.objective, len(activations.details))
        return pack(advance(self.part, self.number, activations, ways))


class HeadLayer(nn.Module):
    """Answers."""

    def __init__(self, options: LayerOptions):
        super().__init__()
        self.part = options.generator(HEAD, options.shape.num_hidden_layers + 1)

    def forward(self, tensors: tuple[Tensor, ...]) -> Answers:
        return answer(self.part, unpack(tensors))


class GeneratorStages(Stages):
    """The stages of this process."""

    def __init__(self, options: LayerOptions, topology: ProcessTopology, weigh: WeighLosses, *, checkpointing: bool):
        blocks = [LayerSpec(BlockLayer, options, number) for number in range(options.shape.num_hidden_layers)]
        layers = [LayerSpec(StemLayer, options), *blocks, LayerSpec(HeadLayer, options)]
        super().__init__(layers, topology, checkpointing=checkpointing)
        ranks, codes = options.tensor_ranks, options.shape.visual_vocabulary
        self.code_loss = CodeLoss() if ranks is None else SplitLoss(codes, ranks)
        self._weigh = weigh

    def losses(self, outputs: Answers, labels: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        losses = mark(outputs, labels.to(outputs.sketch.device), self.code_loss)
        return self._weigh(losses), losses


def pack(activations: Activations) -> tuple[Tensor, ...]:
    """As tensors alone, which is what passes between stages."""
    codes = () if activations.plan_codes is None else (activations.plan_codes,)
    return (activations.sketch, *activations.details, *codes)


def unpack(tensors: Sequence[Tensor] | Tensor) -> Activations:
    """The inverse of `pack`: codes are whole numbers. DeepSpeed makes a tensor of one alone."""
    sketch, *rest = (tensors,) if isinstance(tensors, Tensor) else tensors
    codes = rest.pop() if rest and not rest[-1].is_floating_point() else None
    return Activations(sketch, tuple(rest), codes)

"""The generator as the list of layers that DeepSpeed cuts into the stages of a pipeline.

Between layers go tuples of tensors: a lesson's own (`Lesson.tensors`) into the first, then its activations. The last
stage is given the lesson as its label.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from deepspeed.pipe import LayerSpec, PipelineModule
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, ProcessTopology
from torch import Tensor, nn

from model.objectives.lesson import Lesson
from model.objectives.losses import Activations, Answers, Paths, advance, answer, embed, mark, paths
from model.objectives.settings import Objective
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


class Layer(nn.Module):
    """One layer of the list; `generator` has its weights, under the names that they have in the whole model."""

    def __init__(self, options: LayerOptions, part: Part, number: int):
        super().__init__()
        self.options, self.number = options, number
        self.generator = options.generator(part, number)

    def lesson(self, tensors: Sequence[Tensor]) -> Lesson:
        return Lesson.from_tensors(tensors, self.options.objective, self.options.shape, self.options.label_smoothing)


class StemLayer(Layer):
    """Embeds a lesson."""

    def __init__(self, options: LayerOptions):
        super().__init__(options, STEM, options.shape.num_hidden_layers)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return pack(embed(self.generator, self.lesson(tensors)))


class BlockLayer(Layer):
    """One block."""

    def __init__(self, options: LayerOptions, number: int):
        super().__init__(options, one_block(number), number)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        activations = unpack(tensors)
        return pack(advance(self.generator, self.number, activations, self._paths(len(activations.details))))

    def _paths(self, details: int) -> Paths:
        return paths(self.generator, self.options.objective, details)


class HeadLayer(Layer):
    """Answers."""

    def __init__(self, options: LayerOptions):
        super().__init__(options, HEAD, options.shape.num_hidden_layers + 1)

    def forward(self, tensors: tuple[Tensor, ...]) -> Answers:
        return answer(self.generator, unpack(tensors))


class GeneratorStages(PipelineModule):
    """The stages of this process; the pipeline engine asks `get_additional_losses` for what a step's loss is made of."""

    def __init__(self, options: LayerOptions, topology: ProcessTopology, weigh: WeighLosses, *, checkpointing: bool):
        blocks = [LayerSpec(BlockLayer, options, number) for number in range(options.shape.num_hidden_layers)]
        super().__init__(
            [LayerSpec(StemLayer, options), *blocks, LayerSpec(HeadLayer, options)],
            topology=topology,
            loss_fn=self._loss,
            partition_method="type:BlockLayer",
            activation_checkpoint_interval=int(checkpointing),
            checkpointable_layers=["BlockLayer"],
        )
        ranks, codes = options.tensor_ranks, options.shape.visual_vocabulary
        self.code_loss = CodeLoss() if ranks is None else SplitLoss(codes, ranks)
        self._weigh, self._parts = weigh, OrderedDict[str, Tensor]()

    @property
    def grid(self) -> PipelineParallelGrid:
        return self._grid

    def generators(self) -> list[Generator]:
        """The parts of the model that this rank has, in their order."""
        return [layer.generator for layer in self.forward_funcs if isinstance(layer, Layer)]

    def _loss(self, answers: Answers, lesson: Lesson) -> Tensor:
        device = answers.sketch.device
        losses = mark(answers, lesson.to(device), self.code_loss)
        self._parts = OrderedDict((name, loss.detach()) for name, loss in losses.items())
        return self._weigh(losses)

    def expect(self, names: Sequence[str]) -> None:
        """The losses that the next step has: stages without a head must know how many there are."""
        self._parts = OrderedDict((name, torch.zeros(())) for name in names)

    def get_additional_losses(self) -> OrderedDict[str, Tensor]:
        """The last micro-batch's losses by name."""
        return self._parts


def pack(activations: Activations) -> tuple[Tensor, ...]:
    """As tensors alone, which is what passes between stages."""
    codes = () if activations.plan_codes is None else (activations.plan_codes,)
    return (activations.sketch, *activations.details, *codes)


def unpack(tensors: Sequence[Tensor]) -> Activations:
    """The inverse of `pack`: codes are whole numbers."""
    sketch, *rest = tensors
    codes = rest.pop() if rest and not rest[-1].is_floating_point() else None
    return Activations(sketch, tuple(rest), codes)

"""One training step over any layout, by DeepSpeed: its pipeline engine where there are stages, its plain one elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.pipe.topology import PipelineParallelGrid, PipeModelDataParallelTopology
from torch import Tensor, nn

from model.decoding.loop import stage_name
from model.objectives.lesson import Lesson
from model.objectives.losses import lesson_losses
from model.objectives.settings import Objective
from model.parallel.collectives import Group
from model.parallel.guard import GuardedOptimizer
from model.parallel.layout import ParallelLayout
from model.parallel.stages import GeneratorStages, Layer, LayerOptions, WeighLosses
from model.parallel.tensor import TensorRanks, split_layers
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is trained on this rank."""

    layout: ParallelLayout
    shape: GeneratorConfig
    objective: Objective
    label_smoothing: float
    seed: int
    """Of initial weights."""
    micro_batch: int
    """Images that are computed at once."""
    accumulation: int
    """Micro-batches of a step on each data-parallel rank."""
    gradient_clipping: float
    bf16: bool = False
    checkpointing: bool = False
    """Whether what is inside a block is computed again in the backward pass rather than kept."""


@dataclass(frozen=True)
class Step:
    """What a training step found."""

    loss: float
    parts: dict[str, float]
    """The losses by name, in nats a token; means over all micro-batches of all ranks."""
    norm: float
    """Of all gradients, before they were clipped."""
    stepped: bool
    """False where a gradient was not finite: no rank has stepped."""


class Engine(Protocol):
    """A model on this rank, and its step."""

    optimizer: GuardedOptimizer
    grid: PipelineParallelGrid
    tensor_ranks: TensorRanks | None

    def parts(self) -> list[Generator]:
        """The layers of this rank, in their order."""
        ...

    def step(self, lessons: Sequence[Lesson]) -> Step:
        """Train on this data-parallel rank's micro-batches, `accumulation` of them."""
        ...


def make_engine(
    options: EngineOptions, weigh: WeighLosses, make_optimizer: MakeOptimizer, start: Generator | None
) -> Engine:
    """`start` is the whole model to start from, which a layout without stages trains in place; None: from the seed."""
    layout = options.layout
    topology = PipeModelDataParallelTopology(num_pp=layout.pipeline, num_mp=layout.tensor, num_dp=layout.data)
    tensor_ranks = join_tensor_group(topology, layout)
    if layout.pipeline > 1:
        layers = LayerOptions(options.shape, options.objective, options.label_smoothing, options.seed, tensor_ranks)
        stages = GeneratorStages(layers, topology, weigh, checkpointing=options.checkpointing)
        return StagedEngine(stages, tensor_ranks, options, make_optimizer)
    generator = start or seeded(options)
    if tensor_ranks is not None:
        split_layers(generator, tensor_ranks, options.shape.visual_vocabulary)
    return PlainEngine(generator, PipelineParallelGrid(topology), tensor_ranks, options, weigh, make_optimizer)


def seeded(options: EngineOptions) -> Generator:
    """A whole model from the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        return Generator(options.shape).train()


def join_tensor_group(topology: PipeModelDataParallelTopology, layout: ParallelLayout) -> TensorRanks | None:
    """This rank's tensor-parallel group; None where each has its layers to itself."""
    if layout.tensor == 1:
        return None
    own = None
    for ranks in topology.get_axis_comm_lists("model"):
        group = dist.new_group(ranks)  # all ranks make all groups, in one order
        if dist.get_rank() in ranks:
            assert isinstance(group, dist.ProcessGroup)
            own = TensorRanks(group, ranks.index(dist.get_rank()), layout.tensor)
    assert own is not None, "every rank is in one of them"
    return own


class _Model(nn.Module):
    """A lesson's losses, so that one forward pass of the plain engine is a micro-batch."""

    def __init__(self, generator: Generator, weigh: WeighLosses):
        super().__init__()
        self.generator, self._weigh = generator, weigh

    def forward(self, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        losses = lesson_losses(self.generator, lesson)
        return self._weigh(losses), losses


class PlainEngine:
    """All layers on every rank, whole or cut."""

    def __init__(
        self,
        generator: Generator,
        grid: PipelineParallelGrid,
        tensor_ranks: TensorRanks | None,
        options: EngineOptions,
        weigh: WeighLosses,
        make_optimizer: MakeOptimizer,
    ):
        self.generator, self.grid, self.tensor_ranks = generator, grid, tensor_ranks
        model = _Model(generator, weigh)
        self.optimizer = _guarded(model, grid, options, make_optimizer)
        self._engine: Any = deepspeed.initialize(
            model=model, optimizer=self.optimizer, config=_config(options), mpu=grid
        )[0]

    def parts(self) -> list[Generator]:
        return [self.generator]

    def step(self, lessons: Sequence[Lesson]) -> Step:
        skipped, total, sums = self.optimizer.skipped, 0.0, dict[str, float]()
        for lesson in lessons:
            loss, losses = self._engine(lesson.map(lambda tensor: tensor.to(self._engine.device)))
            self._engine.backward(loss)
            self._engine.step()
            total += loss.item()
            for name, part in losses.items():
                sums[name] = sums.get(name, 0.0) + part.item()
        total, sums = self._means(total, sums, len(lessons))
        return Step(total, sums, self.optimizer.norm, self.optimizer.skipped == skipped)

    def _means(self, total: float, sums: dict[str, float], lessons: int) -> tuple[float, dict[str, float]]:
        """Over the lessons of all data-parallel ranks."""
        values = torch.tensor([total, *sums.values()], device=self._engine.device, dtype=torch.float64)
        if self.grid.get_data_parallel_world_size() > 1:
            dist.all_reduce(values, group=self.grid.get_data_parallel_group())
        means = (values / lessons / self.grid.get_data_parallel_world_size()).tolist()
        return means[0], dict(zip(sums, means[1:], strict=True))


class StagedEngine:
    """Some layers on every rank."""

    def __init__(
        self,
        stages: GeneratorStages,
        tensor_ranks: TensorRanks | None,
        options: EngineOptions,
        make_optimizer: MakeOptimizer,
    ):
        self._stages, self.grid, self.tensor_ranks = stages, stages.grid, tensor_ranks
        self._fine = -1
        self.optimizer = _guarded(stages, self.grid, options, make_optimizer)
        engine = deepspeed.initialize(model=stages, optimizer=self.optimizer, config=_config(options))[0]
        assert isinstance(engine, PipelineEngine)
        self._engine = engine

    def parts(self) -> list[Generator]:
        return [layer.generator for layer in self._stages.forward_funcs if isinstance(layer, Layer)]

    def step(self, lessons: Sequence[Lesson]) -> Step:
        skipped = self.optimizer.skipped
        names = loss_names(lessons[0])
        if len(lessons[0].details) != self._fine:  # other shapes pass between the stages
            self._fine = len(lessons[0].details)
            self._engine.reset_activation_shape()
        self._stages.expect(names)
        loss = cast(Tensor, self._engine.train_batch(iter([(lesson.tensors(), lesson) for lesson in lessons])))
        parts = cast("dict[str, Tensor]", self._engine.agg_additional_losses or {})
        means = {name: part.item() for name, part in parts.items()}
        return Step(loss.item(), means, self.optimizer.norm, self.optimizer.skipped == skipped)


def loss_names(lesson: Lesson) -> list[str]:
    """What `mark` calls the losses of a lesson."""
    plan = ["plan_loss"] if lesson.plan is not None else []
    return ["coarse_loss", *plan, *(f"{stage_name(stage)}_loss" for stage in range(1, len(lesson.details) + 1))]


def _guarded(
    model: nn.Module, grid: PipelineParallelGrid, options: EngineOptions, make_optimizer: MakeOptimizer
) -> GuardedOptimizer:
    shared = options.layout.tensor * options.layout.pipeline > 1
    return GuardedOptimizer(
        make_optimizer(model),
        (parameter for parameter in model.parameters() if parameter.requires_grad),
        options.gradient_clipping,
        counts_whole=grid.get_slice_parallel_rank() == 0,
        group=cast(Group, grid.get_model_parallel_group()) if shared else None,
    )


def _config(options: EngineOptions) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": options.micro_batch,
        "gradient_accumulation_steps": options.accumulation,
        "gradient_clipping": 0.0,  # DeepSpeed clips to 1 where it is not told; the guarded optimizer does it
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": options.bf16, "dtype": "bfloat16"},
        # Cut in pieces between stages, only one tensor of the activations could need a gradient.
        "pipeline": {"use_reentrant": False, "pipe_partitioned": False, "grad_partitioned": False},
        "steps_per_print": 2**31,
    }

"""Which layouts fit, and which of them are fastest."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from common.errors import UsageError
from model.parallel.plan.engines import EMUFLOW, TrainingEngine
from model.parallel.plan.hardware import Gpu
from model.parallel.plan.layout import Layout, check, why_not
from model.parallel.plan.memory import Memory, memory
from model.parallel.plan.shape import ModelShape
from model.parallel.plan.step_time import StepTime, step_time

_USABLE_MEMORY = 0.75
"""The count knows no fragmentation and no buffers of collectives: published peaks are up to half as much again above it."""
_SECONDS_PER_DAY = 86_400
_MICRO_BATCHES = (1, 2, 4, 8, 16)
_CHUNKS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Plan:
    """One layout, and what comes of it."""

    shape: ModelShape
    layout: Layout
    gpu: Gpu
    memory: Memory
    time: StepTime

    @property
    def fits(self) -> bool:
        return self.memory.total <= _USABLE_MEMORY * self.gpu.memory_gib

    @property
    def tokens_per_s(self) -> float:
        return self.layout.batch * self.shape.sequence / self.time.total

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: of the bf16 peak, without what is computed again."""
        return self.tokens_per_s * self.shape.model_flops_per_token / (self.layout.gpus * self.gpu.bf16_flops)

    @property
    def bubble_share(self) -> float:
        return self.time.bubble / self.time.total

    def days(self, tokens: float) -> float:
        return tokens / self.tokens_per_s / _SECONDS_PER_DAY

    def cost_usd(self, tokens: float) -> float:
        return 24 * self.days(tokens) * self.layout.gpus * self.gpu.usd_per_hour


def plan(shape: ModelShape, layout: Layout, gpu: Gpu) -> Plan:
    """What comes of a layout. Raises `UsageError` where `shape` does not divide so, or the layout's engine does not do it."""
    check(layout, shape, gpu.per_node)
    return Plan(shape, layout, gpu, memory(shape, layout), step_time(shape, layout, gpu))


def best_plans(
    shape: ModelShape, gpu: Gpu, gpus: int, batch: int, *, count: int = 5, engine: TrainingEngine = EMUFLOW
) -> list[Plan]:
    """The fastest layouts on `gpus` GPUs that fit their memory and `engine` trains, with `batch` sequences a step: one for
    each split into tensor, pipeline and data parallel.

    Raises `UsageError` where none fits.
    """
    fastest: dict[tuple[int, int, int], Plan] = {}
    for layout in _layouts(shape, gpu, gpus, batch, engine):
        found = Plan(shape, layout, gpu, memory(shape, layout), step_time(shape, layout, gpu))
        split = (layout.tensor, layout.pipeline, layout.data)
        if found.fits and (split not in fastest or found.time.total < fastest[split].time.total):
            fastest[split] = found
    if not fastest:
        raise UsageError(
            f"{shape.name} does not fit {gpus} {gpu.name.upper()} GPUs with {batch} sequences a step",
            fix="take more GPUs, GPUs with more memory, or a batch that divides by more of them",
        )
    return sorted(fastest.values(), key=lambda each: each.time.total)[:count]


def _layouts(shape: ModelShape, gpu: Gpu, gpus: int, batch: int, engine: TrainingEngine) -> Iterator[Layout]:
    tensors = [size for size in (1, 2, 4, 8, 16) if size <= gpu.per_node]
    pipelines = [size for size in range(1, shape.layers + 1) if shape.layers % size == 0]
    for tensor, pipeline in itertools.product(tensors, pipelines):
        if gpus % (tensor * pipeline):
            continue
        data = gpus // (tensor * pipeline)
        for micro_batch in _MICRO_BATCHES:
            if batch % (data * micro_batch):
                continue
            accumulation = batch // (data * micro_batch)
            for virtual, recompute, zero in itertools.product(_CHUNKS, engine.recomputes, (1, 3)):
                layout = Layout(
                    tensor,
                    pipeline,
                    data,
                    micro_batch,
                    accumulation,
                    virtual,
                    recompute,
                    zero,
                    sequence_parallel=engine.sequence_parallel,
                    engine=engine,
                )
                if why_not(layout, shape, gpu.per_node) is None:
                    yield layout

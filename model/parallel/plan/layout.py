"""How a training is spread over GPUs."""

from dataclasses import dataclass
from typing import Literal

from common.errors import UsageError
from model.parallel.plan.engines import EMUFLOW, MEGATRON, Recompute, TrainingEngine
from model.parallel.plan.shape import ModelShape


@dataclass(frozen=True)
class Layout:
    """Tensor, pipeline and data parallel, and what a GPU does with its part."""

    tensor: int
    pipeline: int
    data: int
    micro_batch: int
    """Sequences that a pipeline stage computes at once."""
    accumulation: int
    """Micro-batches of one step in each pipeline."""
    virtual: int = 1
    """Chunks of layers on each pipeline stage (interleaved 1F1B)."""
    recompute: Recompute = "none"
    zero: Literal[0, 1, 2, 3] = 1
    """What of the training state is split over the data-parallel GPUs: nothing, the optimizer's, gradients too, or all of it
    (FSDP)."""
    overlap_tensor: bool = False
    """Whether the tensor-parallel transfers hide behind matrix multiplications."""
    overlap_data: bool = False
    """Whether gradients and parameters also travel while other micro-batches are computed, not only during the last one."""
    sequence_parallel: bool = False
    """Whether norms and residuals are split over the tensor-parallel GPUs by tokens (Korthikanti et al. 2022), or done by
    each of them."""
    fused_attention: bool = True
    """Whether scores stay on chip (FlashAttention); without it each is written and read again."""
    fp8: bool = False
    engine: TrainingEngine = EMUFLOW
    """What trains it."""

    @property
    def gpus(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def batch(self) -> int:
        """Sequences of one step."""
        return self.micro_batch * self.accumulation * self.data

    def __str__(self) -> str:
        chunks = f" x {self.virtual}" if self.virtual > 1 else ""
        return (
            f"tensor {self.tensor}, pipeline {self.pipeline}{chunks}, data {self.data}, micro-batch {self.micro_batch}, "
            f"accumulation {self.accumulation}, recompute {self.recompute}, ZeRO-{self.zero}"
        )


def check(layout: Layout, shape: ModelShape, gpus_per_node: int) -> None:
    """Raises `UsageError` for a layout in which `shape` does not divide."""
    problem = _indivisible(layout, shape, gpus_per_node)
    if problem is not None:
        raise UsageError(problem, where=str(layout), fix="choose sizes that divide it")
    problem = _not_done(layout, shape)
    if problem is not None:
        raise UsageError(problem, where=str(layout), fix=f"do without, or plan for the engine {MEGATRON.name}")


def why_not(layout: Layout, shape: ModelShape, gpus_per_node: int) -> str | None:
    """Why `shape` cannot be laid out so, or not by the layout's engine; `None` where it can."""
    return _indivisible(layout, shape, gpus_per_node) or _not_done(layout, shape)


def _indivisible(layout: Layout, shape: ModelShape, gpus_per_node: int) -> str | None:
    chunks = layout.pipeline * layout.virtual
    if shape.layers % chunks:
        return f"{shape.layers} layers do not divide into {chunks} equal chunks"
    if shape.heads % layout.tensor or shape.feed_forward % layout.tensor:
        return f"{shape.heads} heads or {shape.feed_forward} feed-forward channels do not divide by {layout.tensor}"
    if layout.tensor > gpus_per_node:
        return f"tensor parallel {layout.tensor} would leave the node of {gpus_per_node} GPUs"
    if layout.engine.cut_keys and shape.kv_heads % layout.tensor:
        return f"{shape.kv_heads} key and value heads do not divide by {layout.tensor}"
    if layout.virtual > 1 and (layout.pipeline == 1 or layout.accumulation % layout.pipeline):
        return "interleaved stages take more than one stage and whole rounds of micro-batches"
    return None


def _not_done(layout: Layout, shape: ModelShape) -> str | None:
    engine = layout.engine
    if layout.virtual > 1 and not engine.interleaved:
        return f"the engine {engine.name} has one chunk of layers on a pipeline stage, not {layout.virtual}"
    if layout.pipeline > 1 and layout.zero >= 2 and not engine.sharded_stages:
        return f"the engine {engine.name} has no ZeRO-{layout.zero} with pipeline parallel"
    if layout.pipeline > 1 and shape.tied and not engine.tied_stages:
        return f"the engine {engine.name} has no pipeline for a head that is tied to the embedding"
    if layout.recompute not in engine.recomputes:
        return f"the engine {engine.name} does not compute again what is {layout.recompute}"
    if layout.sequence_parallel and not engine.sequence_parallel:
        return f"the engine {engine.name} has no sequence parallel"
    return None

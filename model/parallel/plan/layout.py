"""How a training is spread over GPUs."""

from dataclasses import dataclass
from typing import Literal

from common.errors import UsageError
from model.parallel.plan.shape import ModelShape

Recompute = Literal["none", "selective", "full"]
"""What of a block is computed again in the backward pass: nothing; every second matrix multiplication and all between
them (torchtitan's selective checkpointing); or all of it."""


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
    zero: Literal[0, 1, 3] = 1
    """What of the training state is split over the data-parallel GPUs: nothing, the optimizer's, or all of it (FSDP)."""
    overlap_tensor: bool = False
    """Whether the tensor-parallel transfers hide behind matrix multiplications."""
    overlap_data: bool = False
    """Whether gradients and parameters also travel while other micro-batches are computed, not only during the last one."""
    sequence_parallel: bool = True
    """Whether norms and residuals are split over the tensor-parallel GPUs by tokens (Korthikanti et al. 2022), or done by
    each of them."""
    fused_attention: bool = True
    """Whether scores stay on chip (FlashAttention); without it each is written and read again."""
    fp8: bool = False

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
    problem = why_not(layout, shape, gpus_per_node)
    if problem is not None:
        raise UsageError(problem, where=str(layout), fix="choose sizes that divide it")


def why_not(layout: Layout, shape: ModelShape, gpus_per_node: int) -> str | None:
    """Why `shape` cannot be laid out so; `None` where it can."""
    chunks = layout.pipeline * layout.virtual
    if shape.layers % chunks:
        return f"{shape.layers} layers do not divide into {chunks} equal chunks"
    if shape.heads % layout.tensor or shape.feed_forward % layout.tensor:
        return f"{shape.heads} heads or {shape.feed_forward} feed-forward channels do not divide by {layout.tensor}"
    if layout.tensor > gpus_per_node:
        return f"tensor parallel {layout.tensor} would leave the node of {gpus_per_node} GPUs"
    if layout.virtual > 1 and (layout.pipeline == 1 or layout.accumulation % layout.pipeline):
        return "interleaved stages take more than one stage and whole rounds of micro-batches"
    return None

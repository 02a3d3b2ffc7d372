"""What a training program does with a layout, as far as memory, time and what goes at all depend on it."""

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["none", "selective", "full"]
"""What of a block is computed again in the backward pass: nothing; every second matrix multiplication and all between
them (torchtitan's selective checkpointing); or all of it."""


@dataclass(frozen=True, kw_only=True)
class TrainingEngine:
    """In mixed precision (bf16) with Adam. Bytes are of one parameter, or of one channel of a token."""

    name: str
    weight_bytes: float
    """As the model holds weights, and as they travel between data-parallel GPUs."""
    gradient_bytes: float
    """Likewise."""
    cast_bytes: float
    """Of the copies of weights that a micro-batch multiplies with, from its forward pass to its backward pass."""
    whole_optimizer_bytes: float
    """Of the optimizer's state without ZeRO."""
    split_optimizer_bytes: float
    """With it, to be divided by the data-parallel GPUs."""
    step_bytes: float
    """Read and written by a step of the optimizer."""
    residual_bytes: float
    """Of what passes from block to block."""
    backward_sum_bytes: float
    """Of what tensor-parallel GPUs add up in the backward pass; in the forward pass it is bf16."""
    fused: bool
    """Whether what stands between matrix multiplications keeps its inputs alone for the backward pass, not its outputs."""
    sequence_parallel: bool
    """Whether tensor-parallel GPUs can split norms and residuals by tokens, and send a stage's activations in parts."""
    interleaved: bool
    """Whether a pipeline stage can have more than one chunk of layers."""
    sharded_stages: bool
    """Whether ZeRO-3 goes with a pipeline."""
    cut_keys: bool
    """Whether key and value heads must divide by the tensor-parallel GPUs, not be repeated on them."""
    tied_stages: bool
    """Whether a head that is tied to the embedding goes with a pipeline."""
    recomputes: tuple[Recompute, ...]


EMUFLOW = TrainingEngine(
    name="emuflow",
    weight_bytes=4,
    gradient_bytes=4,
    cast_bytes=2,
    whole_optimizer_bytes=8,
    split_optimizer_bytes=12,
    step_bytes=32,
    residual_bytes=4,
    backward_sum_bytes=4,
    fused=False,
    sequence_parallel=False,
    interleaved=False,
    sharded_stages=False,
    cut_keys=True,
    tied_stages=False,
    recomputes=("none", "full"),
)
"""This project's (`model/parallel/engine.py`): weights and gradients are fp32, under autocast. Each micro-batch's forward
pass casts the weights, whole, with ZeRO-3 too; residuals are fp32, as embeddings are. ZeRO has an fp32 piece of the weights
of its own beside the two moments. ZeRO-3 sends what tensor parallel has not cut as bf16: its transfers are then counted
twice."""

MEGATRON = TrainingEngine(
    name="megatron",
    weight_bytes=2,
    gradient_bytes=2,
    cast_bytes=0,
    whole_optimizer_bytes=12,
    split_optimizer_bytes=12,
    step_bytes=30,
    residual_bytes=2,
    backward_sum_bytes=2,
    fused=True,
    sequence_parallel=True,
    interleaved=True,
    sharded_stages=True,
    cut_keys=False,
    tied_stages=True,
    recomputes=("none", "selective", "full"),
)
"""What the published trainings ran on: Megatron-LM, MegaScale and torchtitan, with every feature that one of them has. Bytes
are those of Rajbhandari et al. 2020, "ZeRO", section 3.1: bf16 weight and gradient, fp32 weight and two moments."""

ENGINES: dict[str, TrainingEngine] = {engine.name: engine for engine in (EMUFLOW, MEGATRON)}

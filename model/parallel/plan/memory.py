"""Memory of the fullest GPU, part by part.

Mixed precision with Adam keeps 16 bytes for a parameter: bf16 weight and gradient, fp32 weight and two moments
(Rajbhandari et al. 2020, "ZeRO", section 3.1). Activations are what the backward pass reads
of each block, as Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models") count them, split
by sequence parallelism beside tensor parallelism.
"""

from dataclasses import dataclass

from model.parallel.plan.layout import Layout
from model.parallel.plan.shape import ModelShape

_WORKSPACE_GIB = 4.0
"""CUDA's context, NCCL's buffers and the allocator's slack: an assumption."""
_GIB = 2**30


@dataclass(frozen=True)
class Memory:
    """GiB of the fullest GPU."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    workspace: float = _WORKSPACE_GIB

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.workspace


def stage_parameters(shape: ModelShape, layout: Layout) -> float:
    """Parameters on one GPU before any of them is split over data parallel: the first stage's or the last one's."""
    blocks = shape.layers / layout.pipeline * shape.block_parameters
    tables = shape.embedding_parameters * (1 if layout.pipeline > 1 or shape.tied else 2)
    return (blocks + tables) / layout.tensor


def memory(shape: ModelShape, layout: Layout) -> Memory:
    """What the first pipeline stage holds, which has the most micro-batches in flight, with a table and the logits."""
    own = stage_parameters(shape, layout)
    all_split = layout.data if layout.zero == 3 and layout.pipeline == 1 else 1  # under a pipeline they stay gathered
    optimizer_split = layout.data if layout.zero >= 1 else 1
    return Memory(
        weights=2 * own / all_split / _GIB + _gathered(shape, layout),
        gradients=2 * own / all_split / _GIB,
        optimizer=12 * own / optimizer_split / _GIB,
        activations=_activation_bytes(shape, layout) / _GIB,
        logits=_logit_bytes(shape, layout) / _GIB,
    )


def _gathered(shape: ModelShape, layout: Layout) -> float:
    """FSDP holds two whole blocks at a time, the one at work and the next, with the gradients of one."""
    return 3 * 2 * shape.block_parameters / layout.tensor / _GIB if layout.zero == 3 and layout.pipeline == 1 else 0.0


def _activation_bytes(shape: ModelShape, layout: Layout) -> float:
    tokens = layout.micro_batch * shape.sequence
    inputs = 2.0 * tokens * shape.hidden / layout.tensor
    # In bf16: both norms' inputs, what enters the projections, queries, keys and values, the attention's output; then the
    # feed-forward's: each matrix's output, and their product.
    narrow = 10.0 * shape.hidden + 2.0 * shape.head_dim * (shape.heads + 2 * shape.kv_heads)
    wide = (3 if shape.gated else 2) * 2.0 * shape.feed_forward
    block = tokens * (narrow + wide) / layout.tensor
    scores = 5.0 * layout.micro_batch * shape.heads * shape.sequence**2 / layout.tensor
    if layout.recompute == "none" and not layout.fused_attention:
        block += scores
    layers = shape.layers / layout.pipeline
    in_flight = _in_flight(layout)
    if layout.recompute == "selective":
        return layers * in_flight * block / 2
    if layout.recompute == "full":
        return layers * in_flight * inputs + block + (0 if layout.fused_attention else scores)
    return layers * in_flight * block


def _in_flight(layout: Layout) -> float:
    """Micro-batches whose activations the first stage holds (Korthikanti et al. 2022, section 4.2.3)."""
    if layout.pipeline == 1:
        return 1.0
    extra = 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual) if layout.virtual > 1 else 1.0
    return min(layout.accumulation, layout.pipeline) * extra


def _logit_bytes(shape: ModelShape, layout: Layout) -> float:
    """Of one micro-batch where they are made, the last stage: bf16, fp32 and the gradient."""
    alone = layout.pipeline == 1
    return 8.0 * layout.micro_batch * shape.sequence * shape.vocabulary / layout.tensor if alone else 0.0

"""Memory of the fullest GPU, part by part.

What is kept for a parameter is the engine's (`engines.py`). Activations are what the backward pass reads of each block, as
Korthikanti et al. 2022 ("Reducing Activation Recomputation in Large Transformer Models", sections 4.1 and 4.2) count them:
tensor parallelism splits what is inside attention and feed-forward, sequence parallelism their inputs and the norms' too.
"""

from collections.abc import Callable
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
    """What the fuller of two pipeline stages holds: the first one has a table and the most micro-batches in flight, the last
    one the head and the logits."""
    ends = (_First, _Last) if layout.pipeline > 1 else (_Only,)
    return max((_held(shape, layout, end) for end in ends), key=lambda held: held.total)


@dataclass(frozen=True)
class _End:
    """A stage at an end of the pipeline."""

    has_head: bool
    in_flight: Callable[[Layout], float]
    """Micro-batches whose activations it holds."""


def _first_in_flight(layout: Layout) -> float:
    """Korthikanti et al. 2022, section 4.2.3."""
    extra = 1 + (layout.pipeline - 1) / (layout.pipeline * layout.virtual) if layout.virtual > 1 else 1.0
    return min(layout.accumulation, layout.pipeline) * extra


def _last_in_flight(layout: Layout) -> float:
    """One; with several chunks, all but its last chunk's are of a whole round (Narayanan et al. 2021, section 2.2)."""
    return ((layout.virtual - 1) * min(layout.accumulation, layout.pipeline) + 1) / layout.virtual


_First, _Last = _End(False, _first_in_flight), _End(True, _last_in_flight)
_Only = _End(True, lambda layout: 1.0)


def _held(shape: ModelShape, layout: Layout, end: _End) -> Memory:
    own, engine, data = stage_parameters(shape, layout), layout.engine, layout.data
    # Under a pipeline weights and gradients stay whole.
    weights_over = data if layout.zero == 3 and layout.pipeline == 1 else 1
    gradients_over = data if layout.zero >= 2 and layout.pipeline == 1 else 1
    optimizer = engine.split_optimizer_bytes / data if layout.zero >= 1 else engine.whole_optimizer_bytes
    in_flight = end.in_flight(layout)
    weights = engine.weight_bytes * own / weights_over / _GIB + _gathered(shape, layout)
    return Memory(
        weights=weights + _casts(shape, layout, in_flight, has_head=end.has_head),
        gradients=engine.gradient_bytes * own / gradients_over / _GIB,
        optimizer=optimizer * own / _GIB,
        activations=_activation_bytes(shape, layout, in_flight) / _GIB,
        logits=_logit_bytes(shape, layout) / _GIB if end.has_head else 0.0,
    )


def _gathered(shape: ModelShape, layout: Layout) -> float:
    """FSDP holds two whole blocks at a time, the one at work and the next, with the gradients of one."""
    if layout.zero < 3 or layout.pipeline > 1:
        return 0.0
    each = 2 * layout.engine.weight_bytes + layout.engine.gradient_bytes
    return each * shape.block_parameters / layout.tensor / _GIB


def _casts(shape: ModelShape, layout: Layout, in_flight: float, *, has_head: bool) -> float:
    """Copies of the weights that are multiplied with. A micro-batch's own wait with its activations for the backward pass;
    where that computes blocks again, those of one forward pass are kept until its end."""
    matrices = shape.layers / layout.pipeline * shape.block_parameters
    matrices += shape.embedding_parameters if has_head else 0
    passes = 1.0 if layout.recompute == "full" else in_flight
    return layout.engine.cast_bytes * matrices / layout.tensor * passes / _GIB


def _activation_bytes(shape: ModelShape, layout: Layout, in_flight: float) -> float:
    engine, tokens = layout.engine, layout.micro_batch * shape.sequence
    across = layout.tensor if layout.sequence_parallel else 1
    inputs = engine.residual_bytes * tokens * shape.hidden / across
    # Both norms' inputs, and in bf16 what enters the projections; then, in bf16, queries, keys and values, the attention's
    # output, and the feed-forward's: each matrix's output, and their product.
    outer = (2 * engine.residual_bytes + 4.0) * shape.hidden
    keys = shape.head_dim * shape.kv_heads
    inner = 2.0 * (2 * shape.attention_width + 2 * keys) + (3 if shape.gated else 2) * 2.0 * shape.feed_forward
    if not engine.fused:  # queries and keys before and after their norms, the gate before and after its SiLU
        inner += 2.0 * (shape.attention_width + keys) + (2.0 * shape.feed_forward if shape.gated else 0.0)
    block = tokens * (outer / across + inner / layout.tensor)
    scores = 5.0 * layout.micro_batch * shape.heads * shape.sequence**2 / layout.tensor
    if layout.recompute == "none" and not layout.fused_attention:
        block += scores
    layers = shape.layers / layout.pipeline
    if layout.recompute == "selective":
        return layers * in_flight * block / 2
    if layout.recompute == "full":
        return layers * in_flight * inputs + block + (0 if layout.fused_attention else scores)
    return layers * in_flight * block


def _logit_bytes(shape: ModelShape, layout: Layout) -> float:
    """Of one micro-batch: bf16, fp32 and the gradient."""
    return 8.0 * layout.micro_batch * shape.sequence * shape.vocabulary / layout.tensor

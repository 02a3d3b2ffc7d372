"""Seconds of one training step, part by part.

Compute is matrix multiplications at a share of the peak, and everything else at the speed of the memory. Collectives are
rings: all-reduce moves 2 (n - 1) / n of its bytes over each GPU's link, gather and scatter half of that. A pipeline of p
stages with v chunks each and m micro-batches is idle for (p - 1) / (v m) of its work (Narayanan et al. 2021, section 2.2).
"""

from dataclasses import dataclass
from math import log2

from model.parallel.plan.engines import Recompute
from model.parallel.plan.hardware import FP8_SPEEDUP, HBM_EFFICIENCY, LINK_EFFICIENCY, Gpu
from model.parallel.plan.layout import Layout
from model.parallel.plan.memory import stage_parameters
from model.parallel.plan.shape import ModelShape

_BYTES_PER_CHANNEL = 84.0
"""Moved for each token and hidden channel of a block in the forward pass by what is no matrix multiplication: norms,
residuals, rotations, activations, reads and writes. The backward pass moves twice that."""
_BETWEEN_MATMULS = 10 / 34
"""The part of them that tensor parallelism alone does not split (Korthikanti et al. 2022, equation 2)."""
_SCORE_BYTES = 8.0
"""Likewise for each score of an attention that keeps them in memory: written, masked, normalised, dropped, read."""
_HIDDEN_TENSOR = 0.6
"""Share of tensor-parallel transfers that hide behind multiplications where a training overlaps them."""
_STRAGGLING = 0.01
"""Of a step, for each doubling of the nodes: what published trainings lose as they grow beyond what is counted here."""
_HIDDEN_DATA = 0.9
"""Share of the compute behind which gradients and sharded parameters can travel."""


@dataclass(frozen=True)
class _Passes:
    """How often a block's forward work is done in a step; the backward pass does it twice."""

    matmul: float
    attention: float
    elementwise: float


_PASSES: dict[Recompute, _Passes] = {
    "none": _Passes(3, 3, 3),
    "selective": _Passes(3.5, 3, 4),
    "full": _Passes(4, 4, 4),
}


@dataclass(frozen=True)
class StepTime:
    """Seconds of one step; the parts add up to `total`."""

    matmul: float
    elementwise: float
    tensor_transfers: float
    bubble: float
    pipeline_transfers: float
    data_transfers: float
    """What does not hide behind compute."""
    optimizer: float
    stragglers: float
    """All wait for the slowest."""
    link_bytes: dict[str, float]
    """Bytes that one GPU sends in a step: `tensor`, `pipeline`, `data`."""

    @property
    def total(self) -> float:
        work = self.matmul + self.elementwise + self.tensor_transfers
        return work + self.bubble + self.pipeline_transfers + self.data_transfers + self.optimizer + self.stragglers


def step_time(shape: ModelShape, layout: Layout, gpu: Gpu) -> StepTime:
    """Of the slowest pipeline stage, the one with the head."""
    tokens = layout.micro_batch * shape.sequence
    layers, steps = shape.layers / layout.pipeline, layout.accumulation
    passes = _PASSES[layout.recompute]
    peak = gpu.bf16_flops * gpu.matmul_efficiency
    linear = peak * (FP8_SPEEDUP if layout.fp8 else 1.0)
    attention = shape.block_attention_flops(causal=layout.fused_attention) / peak
    block = passes.matmul * shape.block_matmul_flops / linear + passes.attention * attention
    head = 3 * shape.head_flops / peak / layout.pipeline  # stages are balanced by layers
    matmul = steps * tokens * (layers * block + head) / layout.tensor
    moved = _moved_bytes(shape, layout) * passes.elementwise
    elementwise = steps * tokens * layers * moved / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    tensor_bytes = steps * layers * _tensor_bytes(shape, layout, tokens)
    tensor = tensor_bytes / (gpu.nvlink_bytes_per_s * LINK_EFFICIENCY)
    tensor *= 1 - _HIDDEN_TENSOR if layout.overlap_tensor else 1
    work = matmul + elementwise + tensor
    bubble = work * (layout.pipeline - 1) / (layout.virtual * steps)
    pipeline_bytes = steps * _pipeline_bytes(shape, layout, tokens)
    data_bytes = _data_bytes(shape, layout)
    data = data_bytes / (_data_link(layout, gpu) * LINK_EFFICIENCY)
    behind = work if layout.zero >= 2 or layout.overlap_data else work / steps
    pipeline_transfers = pipeline_bytes / (gpu.network_bytes_per_s * LINK_EFFICIENCY)
    data_transfers = max(0.0, data - _HIDDEN_DATA * behind)
    optimizer = _optimizer_bytes(shape, layout) / (gpu.hbm_bytes_per_s * HBM_EFFICIENCY)
    nodes = max(1.0, layout.gpus / gpu.per_node)
    return StepTime(
        matmul=matmul,
        elementwise=elementwise,
        tensor_transfers=tensor,
        bubble=bubble,
        pipeline_transfers=pipeline_transfers,
        data_transfers=data_transfers,
        optimizer=optimizer,
        stragglers=_STRAGGLING * log2(nodes) * (work + bubble + pipeline_transfers + data_transfers + optimizer),
        link_bytes={"tensor": tensor_bytes, "pipeline": pipeline_bytes, "data": data_bytes},
    )


def _moved_bytes(shape: ModelShape, layout: Layout) -> float:
    """Of a token in a block, by one GPU, forward."""
    scores = 0.0 if layout.fused_attention else _SCORE_BYTES * shape.heads * shape.sequence
    channels = _BYTES_PER_CHANNEL * shape.hidden * (1 - _BETWEEN_MATMULS / 2 if shape.parallel_block else 1)
    whole = 0.0 if layout.sequence_parallel else _BETWEEN_MATMULS * channels
    return whole + (channels - whole + scores) / layout.tensor


def _tensor_bytes(shape: ModelShape, layout: Layout, tokens: float) -> float:
    """Sent by one GPU for a block and a micro-batch: two all-reduces forward, two backward, two more to compute again."""
    if layout.tensor == 1:
        return 0.0
    forward = 4 if layout.recompute == "full" else 2
    summed = (forward * 2.0 + 2 * layout.engine.backward_sum_bytes) / (2 if shape.parallel_block else 1)
    return summed * 2.0 * (layout.tensor - 1) / layout.tensor * tokens * shape.hidden


def _pipeline_bytes(shape: ModelShape, layout: Layout, tokens: float) -> float:
    """Sent by one GPU for a micro-batch: activations forward, their gradients backward, for each chunk."""
    if layout.pipeline == 1:
        return 0.0
    parts = layout.tensor if layout.engine.sequence_parallel else 1
    return 2 * layout.engine.residual_bytes * tokens * shape.hidden / parts * layout.virtual


def _data_bytes(shape: ModelShape, layout: Layout) -> float:
    """Gradients are reduced and parameters gathered once a step. Without a pipeline, gradients that are split are reduced for
    each micro-batch, and parameters that are split gathered twice for each. Under a pipeline they stay gathered for the whole
    step."""
    if layout.data == 1:
        return 0.0
    own = stage_parameters(shape, layout)
    ring = (layout.data - 1) / layout.data
    weight, gradient = layout.engine.weight_bytes, layout.engine.gradient_bytes
    if layout.zero == 3 and layout.pipeline == 1:
        return ring * own * (2 * weight + gradient) * layout.accumulation
    if layout.zero == 2 and layout.pipeline == 1:
        return ring * own * (weight + gradient * layout.accumulation)
    return ring * own * (weight + gradient)


def _data_link(layout: Layout, gpu: Gpu) -> float:
    """Bytes a second of one GPU. Neighbours in a node that belong to one data-parallel group need the same bytes of others:
    each brings in its share, and the node's own links do the rest."""
    if layout.gpus <= gpu.per_node:
        return gpu.nvlink_bytes_per_s
    neighbours = min(layout.data, max(1, gpu.per_node // layout.tensor))
    return min(gpu.nvlink_bytes_per_s, neighbours * gpu.network_bytes_per_s)


def _optimizer_bytes(shape: ModelShape, layout: Layout) -> float:
    """Read and written by Adam: gradient, fp32 weight, two moments, the model's weight."""
    split = layout.data if layout.zero >= 1 else 1
    return layout.engine.step_bytes * stage_parameters(shape, layout) / split

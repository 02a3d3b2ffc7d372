"""SmoothQuant (Xiao et al. 2023): move the activations' outlier channels into the weights before quantization.

Each fold divides a layer's input channels by `s` where they are made, and multiplies the layer's columns by it:
the function stays the same, and both sides become easier to represent in 8 bits.
"""

import torch
from torch import Tensor, nn

from model.quantization.layers import block_linears
from model.transformer.layers import Block
from model.transformer.model import Generator

_SMALLEST = 1e-5
_SCALE_LIMITS = (1e-2, 1e2)


@torch.no_grad()
def fold_smoothing(generator: Generator, maxima: dict[str, Tensor], alpha: float) -> None:
    """Fold the smoothing scales into `generator`'s weights, in place.

    `maxima` holds each layer's largest absolute inputs over all graphs that share these weights: one fold for
    all, because folding V changes the basis of the cached values. `alpha` is the share of the difficulty that
    moves to the weights.
    """
    for index, block in enumerate(generator.decoder_blocks()):
        seen = {name: maxima[f"blocks.{index}.{name}"] for name in block_linears(block)}
        _fold_block(block, seen, alpha)


def _fold_block(block: Block, maxima: dict[str, Tensor], alpha: float) -> None:
    attention, mlp = block.attention, block.mlp

    scale = smoothing_scale(maxima["attention.qkv_proj"], attention.qkv_proj, alpha)
    block.attention_norm.weight.div_(scale)
    attention.qkv_proj.weight.mul_(scale)

    scale = smoothing_scale(maxima["mlp.gate_up_proj"], mlp.gate_up_proj, alpha)
    block.mlp_norm.weight.div_(scale)
    mlp.gate_up_proj.weight.mul_(scale)

    # down's input is silu(gate) * up: dividing the rows of up divides it.
    scale = smoothing_scale(maxima["mlp.down_proj"], mlp.down_proj, alpha)
    mlp.gate_up_proj.weight[scale.numel() :].div_(scale[:, None])
    mlp.down_proj.weight.mul_(scale)

    # A value head serves a group of query heads, which must agree on its scale.
    groups = attention.heads // attention.kv_heads
    scale = smoothing_scale(maxima["attention.o_proj"], attention.o_proj, alpha)
    scale = scale.view(attention.kv_heads, groups, attention.head_dim).amax(1)
    value_rows = (attention.heads + attention.kv_heads) * attention.head_dim
    attention.qkv_proj.weight[value_rows:].div_(scale.reshape(-1, 1))
    attention.o_proj.weight.mul_(scale.repeat_interleave(groups, 0).reshape(-1))


def smoothing_scale(activation_maxima: Tensor, linear: nn.Linear, alpha: float) -> Tensor:
    """max|x|^alpha / max|w|^(1 - alpha) for each input channel, [in_features], within sane limits."""
    weight_maxima = linear.weight.abs().amax(0).clamp(min=_SMALLEST)
    scale = activation_maxima.clamp(min=_SMALLEST) ** alpha / weight_maxima ** (1 - alpha)
    return scale.clamp(*_SCALE_LIMITS)

"""The modality gate in one block-sparse kernel, for GPUs: FlexAttention with a block mask made of the gates.

Compiled (`torch.compile`), closed blocks are neither loaded nor computed; run as it is, it computes all scores and gives
the same numbers, which is how it is tested where there is no GPU.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from model.transformer.gate import THRESHOLD, GatedInput


def gated_attention_flex(given: GatedInput, kernel=flex_attention) -> Tensor:
    """The numbers of `gated_attention_masked`, [b, h, n, d]; `kernel` is `flex_attention` or what compiles it.

    Raises `ValueError` for several requests at once, for a bias among the own tokens, and for own tokens that cannot be cut
    into the blocks that the earlier ones are cut into.
    """
    if given.requests > 1 or given.own_bias is not None:
        raise ValueError("one request without a bias at a time: others go through gated_attention")
    keys = torch.cat([given.earlier_keys, given.own_keys], -2)
    values = torch.cat([given.earlier_values, given.own_values], -2)
    return kernel(given.query, keys, values, block_mask=gate_mask(given), scale=1.0)


def gate_mask(given: GatedInput) -> BlockMask:
    """Which blocks of keys each query block sees: the open earlier ones, and its own tokens behind them.

    Keys are cut into blocks of the earlier blocks' greatest common size.
    """
    unit, own = math.gcd(*given.key_sizes), given.own_keys.shape[-2]
    if own % unit:
        raise ValueError(f"{own} own tokens cannot be cut into blocks of {unit}: pad them")
    units = torch.tensor([size // unit for size in given.key_sizes], device=given.gates.device)
    seen = (given.gates > THRESHOLD).repeat_interleave(units, -1)
    seen = F.pad(seen, (0, own // unit), value=True)  # [b, h, q, blocks of keys]
    size = given.query.shape[-2] // seen.shape[-2]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return seen[batch, head, query // size, key // unit]

    counts = seen.sum(-1, dtype=torch.int32)
    order = torch.argsort(seen.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
    # A block is seen whole or not at all, so the kernel need not ask `sees` within one.
    return BlockMask.from_kv_blocks(
        torch.zeros_like(counts), torch.zeros_like(order), counts, order, BLOCK_SIZE=(size, unit), mask_mod=sees
    )

"""The dynamic modality gate: which earlier blocks (a caption, an image) a head's query block looks at at all.

For each head, query block and earlier block

    alpha = sigmoid(scale * mean(q)' W mean(k) + w_q' mean(q) + w_k' mean(k) + b)

and below one half the block is skipped. The two sums alone cannot ask whether a block is the one that is looked for:
the product of query and key can. The gate is hard from the first step of training (a straight-through estimate: open or
closed on the way forward, the sigmoid's slope on the way back), because a soft one is gamed: the attention behind it
makes up for any share.

`gated_attention_masked` computes all scores and is for training; `gated_attention` gathers the open blocks' keys and
computes nothing else, so that time falls as the count does. Both give the same numbers.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

THRESHOLD = 0.5


class ModalityGate(nn.Module):
    """The gate of one layer; shapes use b = batch, h = heads, q = query blocks, k = earlier blocks, d = head_dim."""

    def __init__(self, heads: int, head_dim: int, bias: float = 2.0):
        super().__init__()
        self.match = nn.Parameter(torch.eye(head_dim).repeat(heads, 1, 1))
        self.scale = nn.Parameter(torch.full((heads,), 4.0))
        self.query = nn.Parameter(torch.zeros(heads, head_dim))
        self.key = nn.Parameter(torch.zeros(heads, head_dim))
        self.bias = nn.Parameter(torch.full((heads,), bias))

    def forward(self, query_means: Tensor, key_means: Tensor) -> Tensor:
        """alpha, from [b, h, q, d] and [b, h, k, d]: [b, h, q, k]."""
        matched = (query_means @ self.match) @ key_means.transpose(-1, -2) * self.scale[:, None, None]
        asking = (query_means * self.query[:, None]).sum(-1)[..., None]
        offering = (key_means * self.key[:, None]).sum(-1)[..., None, :]
        return torch.sigmoid(matched + asking + offering + self.bias[:, None, None])


def open_blocks(alpha: Tensor) -> Tensor:
    """1 where a block is looked at and 0 where it is skipped; the gradient is that of `alpha`."""
    return (alpha > THRESHOLD).to(alpha.dtype) + alpha - alpha.detach()


def block_means(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Means over consecutive blocks of the tokens: [b, h, tokens, d] -> [b, h, len(sizes), d]."""
    return torch.stack([part.mean(-2) for part in x.split(list(sizes), dim=-2)], dim=-2)


class GatedInput(NamedTuple):
    """What a layer's gated attention is about: n tokens that ask, in q query blocks, and m earlier ones in k blocks."""

    query: Tensor
    """[b, h, n, d], scaled."""
    earlier_keys: Tensor
    """[b, h, m, d]."""
    earlier_values: Tensor
    own_keys: Tensor
    """[b, h, n, d]: what is never gated."""
    own_values: Tensor
    own_bias: Tensor
    """[n, n], added to the scores among the asking tokens."""
    gates: Tensor
    """[b, h, q, k] of zeros and ones (`open_blocks`)."""
    query_sizes: tuple[int, ...]
    """Tokens of each query block; their sum is n."""
    key_sizes: tuple[int, ...]
    """Tokens of each earlier block; their sum is m."""


def gated_attention_masked(given: GatedInput) -> Tensor:
    """Attention over all earlier tokens and the block's own, with closed earlier blocks weighted by zero: [b, h, n, d]."""
    query, tokens = given.query, given.earlier_keys.shape[-2]
    elsewhere = query @ given.earlier_keys.transpose(-1, -2)
    home = query @ given.own_keys.transpose(-1, -2) + given.own_bias
    weights = torch.softmax(torch.cat([elsewhere, home], -1).float(), -1)
    repeats = [torch.tensor(sizes, device=query.device) for sizes in (given.query_sizes, given.key_sizes)]
    wide = given.gates.repeat_interleave(repeats[0], -2).repeat_interleave(repeats[1], -1)
    looked_at, at_home = weights[..., :tokens] * wide, weights[..., tokens:]
    total = looked_at.sum(-1, keepdim=True) + at_home.sum(-1, keepdim=True)
    mixed = looked_at.to(query.dtype) @ given.earlier_values + at_home.to(query.dtype) @ given.own_values
    return mixed / total.clamp_min(1e-6).to(query.dtype)


def gated_attention(given: GatedInput) -> Tensor:
    """The same numbers as `gated_attention_masked`, from the open blocks' keys and values alone: [b, h, n, d].

    Blocks are gathered in units of their greatest common size; a head's query block with fewer open ones than another
    is padded.
    """
    unit = math.gcd(*given.key_sizes)
    batch, heads, _, head_dim = given.query.shape
    device = given.query.device
    units = torch.tensor([size // unit for size in given.key_sizes], device=device)
    is_open = (given.gates > THRESHOLD).repeat_interleave(units, -1).flatten(0, 1)  # [b * h, q, units]
    counts = is_open.sum(-1)
    widest = int(counts.max())
    # Open units first, in their order; what follows them is padding.
    chosen = torch.argsort(is_open.to(torch.int8), dim=-1, descending=True, stable=True)[..., :widest]
    padding = (torch.arange(widest, device=device) >= counts[..., None]).repeat_interleave(unit, -1)[:, :, None]
    rows = torch.arange(batch * heads, device=device)[:, None, None]
    keys, values = (
        part.reshape(batch * heads, -1, unit, head_dim)[rows, chosen].flatten(2, 3)
        for part in (given.earlier_keys, given.earlier_values)
    )
    own_keys, own_values = given.own_keys.flatten(0, 1), given.own_values.flatten(0, 1)
    asking = given.query.flatten(0, 1).split(list(given.query_sizes), 1)
    biases = given.own_bias.split(list(given.query_sizes))
    mixed = []
    for block, (query, bias) in enumerate(zip(asking, biases, strict=True)):
        seen = (query @ keys[:, block].transpose(-1, -2)).masked_fill(padding[:, block], float("-inf"))
        weights = torch.softmax(torch.cat([seen, query @ own_keys.transpose(-1, -2) + bias], -1), -1)
        elsewhere, home = weights.split([seen.shape[-1], own_keys.shape[1]], -1)
        mixed.append(elsewhere @ values[:, block] + home @ own_values)
    return torch.cat(mixed, 1).view(given.query.shape)

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


def gated_attention_masked(
    query: Tensor,
    earlier: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    own_bias: Tensor,
    gates: Tensor,
    query_sizes: tuple[int, ...],
    key_sizes: tuple[int, ...],
) -> Tensor:
    """Attention over all earlier tokens and the block's own, with closed earlier blocks weighted by zero.

    `query` [b, h, n, d], scaled; `earlier` keys and values [b, h, m, d]; `own` keys and values [b, h, n, d] with
    `own_bias` [n, n]; `gates` [b, h, q, k] of zeros and ones; sizes of the query blocks (sum n) and of the earlier blocks
    (sum m). Returns [b, h, n, d].
    """
    scores = torch.cat([query @ earlier[0].transpose(-1, -2), query @ own[0].transpose(-1, -2) + own_bias], -1)
    weights = torch.softmax(scores.float(), -1)
    repeats = [torch.tensor(sizes, device=query.device) for sizes in (query_sizes, key_sizes)]
    wide = gates.repeat_interleave(repeats[0], -2).repeat_interleave(repeats[1], -1)
    tokens = earlier[0].shape[-2]
    looked_at, at_home = weights[..., :tokens] * wide, weights[..., tokens:]
    total = looked_at.sum(-1, keepdim=True) + at_home.sum(-1, keepdim=True)
    mixed = looked_at.to(query.dtype) @ earlier[1] + at_home.to(query.dtype) @ own[1]
    return mixed / total.clamp_min(1e-6).to(query.dtype)


def gated_attention(
    query: Tensor,
    earlier: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    own_bias: Tensor,
    gates: Tensor,
    query_sizes: tuple[int, ...],
    key_sizes: tuple[int, ...],
) -> Tensor:
    """The same numbers as `gated_attention_masked`, from the open blocks' keys and values alone.

    Blocks are gathered in units of their greatest common size; a head's query block with fewer open ones than another
    is padded.
    """
    unit = math.gcd(*key_sizes)
    batch, heads, _, head_dim = query.shape
    units = torch.tensor([size // unit for size in key_sizes], device=query.device)
    is_open = (gates > THRESHOLD).repeat_interleave(units, -1).flatten(0, 1)  # [b * h, q, units]
    counts = is_open.sum(-1)
    widest = int(counts.max())
    # Open units first, in their order; what follows them is padding.
    chosen = torch.argsort(is_open.to(torch.int8), dim=-1, descending=True, stable=True)[..., :widest]
    padded = torch.arange(widest, device=query.device) >= counts[..., None]
    rows = torch.arange(batch * heads, device=query.device)[:, None, None]
    keys, values = (part.reshape(batch * heads, -1, unit, head_dim)[rows, chosen].flatten(2, 3) for part in earlier)
    padding = padded.repeat_interleave(unit, -1)[:, :, None]
    mixed, start = [], 0
    own_keys, own_values = (part.flatten(0, 1) for part in own)
    flat = query.flatten(0, 1)
    for block, size in enumerate(query_sizes):
        asked = flat[:, start : start + size]
        seen = (asked @ keys[:, block].transpose(-1, -2)).masked_fill(padding[:, block], float("-inf"))
        home = asked @ own_keys.transpose(-1, -2) + own_bias[start : start + size]
        weights = torch.softmax(torch.cat([seen, home], -1), -1)
        mixed.append(weights[..., : seen.shape[-1]] @ values[:, block] + weights[..., seen.shape[-1] :] @ own_values)
        start += size
    return torch.cat(mixed, 1).view(query.shape)

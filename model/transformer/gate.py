"""The dynamic modality gate: which earlier blocks (a caption, an image) a head's query block looks at at all.

For each head, query block and earlier block

    alpha = sigmoid(scale * mean(q)' W mean(k) + w_q' mean(q) + w_k' mean(k) + b)

and below one half the block is skipped. The two sums alone cannot ask whether a block is the one that is looked for:
the product of query and key can. The gate is hard from the first step of training (a straight-through estimate: open or
closed on the way forward, the sigmoid's slope on the way back), because a soft one is gamed: the attention behind it
makes up for any share.

`gated_attention_masked` computes all scores and is for training; `gated_attention` gathers the open blocks' keys and
computes nothing else, so that time falls as the count does. Both give the same numbers. `dense_attention` looks at all.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
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

    def prepare(self, key_means: Tensor) -> "GateKeys":
        """The gate's view of earlier blocks, from [b, h, k, d]: computed once for a context, like its keys."""
        keys = key_means.transpose(-1, -2)
        asked = (self.scale[:, None, None] * self.match) @ keys + self.query[:, :, None]
        offered = (self.key[:, None] @ keys) + self.bias[:, None, None]
        return GateKeys(asked, offered)

    def forward(self, query_means: Tensor, key_means: Tensor) -> Tensor:
        """alpha, from [b, h, q, d] and [b, h, k, d]: [b, h, q, k]."""
        return torch.sigmoid(self.prepare(key_means).logits(query_means))


class GateKeys(NamedTuple):
    """What a gate keeps of earlier blocks: alpha is the sigmoid of `mean(q)' asked + offered`."""

    asked: Tensor
    """[b, h, d, k]: scale * W mean(k) + w_q."""
    offered: Tensor
    """[b, h, 1, k]: w_k' mean(k) + b."""

    def logits(self, query_means: Tensor) -> Tensor:
        """[b, h, q, d] -> [b, h, q, k]; a block is open above zero."""
        return query_means @ self.asked + self.offered


def open_blocks(alpha: Tensor) -> Tensor:
    """1 where a block is looked at and 0 where it is skipped; the gradient is that of `alpha`."""
    return (alpha > THRESHOLD).to(alpha.dtype) + alpha - alpha.detach()


def block_means(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Means over consecutive blocks of the tokens: [b, h, tokens, d] -> [b, h, len(sizes), d]."""
    if len(set(sizes)) == 1:
        return x.unflatten(-2, (len(sizes), sizes[0])).mean(-2)
    return torch.stack([part.mean(-2) for part in x.split(list(sizes), dim=-2)], dim=-2)


class GatedInput(NamedTuple):
    """What a layer's gated attention is about: n tokens that ask, in q query blocks of equal size, and m earlier ones in k
    blocks. The n tokens may be those of several requests, which see the same earlier blocks but not each other."""

    query: Tensor
    """[b, h, n, d], scaled; request by request."""
    earlier_keys: Tensor
    """[b, h, m, d]."""
    earlier_values: Tensor
    own_keys: Tensor
    """[b, h, o, d]: what is never gated, request by request; o / requests tokens are seen by n / requests."""
    own_values: Tensor
    own_bias: Tensor | None
    """[n / requests, o / requests], added to the scores among a request's own tokens; None adds nothing."""
    gates: Tensor
    """[b, h, q, k] of zeros and ones (`open_blocks`)."""
    key_sizes: tuple[int, ...]
    """Tokens of each earlier block; their sum is m."""
    requests: int = 1

    def own_scores(self) -> Tensor:
        """Scores among a request's own tokens: [b, h, requests, n / requests, o / requests]."""
        scores = self.by_request(self.query) @ self.by_request(self.own_keys).transpose(-1, -2)
        return scores if self.own_bias is None else scores + self.own_bias

    def by_request(self, x: Tensor) -> Tensor:
        """[b, h, tokens, …] -> [b, h, requests, tokens / requests, …]."""
        return x.unflatten(2, (self.requests, -1))


def gated_attention_masked(given: GatedInput) -> Tensor:
    """Attention over all earlier tokens and the request's own, with closed earlier blocks weighted by zero: [b, h, n, d]."""
    earlier, blocks = given.earlier_keys.shape[-2], given.gates.shape[-2]
    scores = torch.cat([given.query @ given.earlier_keys.transpose(-1, -2), given.own_scores().flatten(2, 3)], -1)
    weights = torch.softmax(scores.float(), -1).to(given.query.dtype)
    sizes = torch.tensor(given.key_sizes, device=scores.device)
    wide = given.gates.to(weights.dtype).repeat_interleave(sizes, -1)[..., None, :]
    looked_at = (weights[..., :earlier].unflatten(2, (blocks, -1)) * wide).flatten(2, 3)
    home = weights[..., earlier:]
    mixed = (given.by_request(home) @ given.by_request(given.own_values)).flatten(2, 3)
    mixed = mixed + looked_at @ given.earlier_values
    return mixed / (looked_at.sum(-1, keepdim=True) + home.sum(-1, keepdim=True)).clamp_min(1e-6)


def gated_attention(given: GatedInput) -> Tensor:
    """The same numbers as `gated_attention_masked`, from the open blocks' keys and values alone: [b, h, n, d].

    Blocks are gathered in units of their greatest common size, for the query blocks that look at any; of these one that
    looks at fewer units than another is padded.
    """
    plan = _plan(given)
    own_keys, own_values = (given.by_request(own).flatten(0, 2) for own in (given.own_keys, given.own_values))
    unit, head_dim = math.gcd(*given.key_sizes), given.query.shape[-1]
    asking = given.query.unflatten(2, (given.gates.shape[-2], -1)).flatten(0, 2)  # [b * h * q, n / q, d]

    def gather(earlier: Tensor, own: Tensor) -> Tensor:
        """[1, looking query blocks, open + own, d]: the open units, and the request's own tokens behind them."""
        found = earlier.reshape(-1, unit * head_dim).index_select(0, plan.units)
        return torch.cat([found.view(len(plan.looking), -1, head_dim), own.index_select(0, plan.requests)], 1)[None]

    def look(some: Tensor) -> Tensor:
        keys, values = gather(given.earlier_keys, own_keys), gather(given.earlier_values, own_values)
        bias = _gathered_bias(given, plan, keys.shape[-2])
        return F.scaled_dot_product_attention(some[None], keys, values, bias, scale=1.0)[0]

    if len(plan.looking) == len(asking):
        return look(asking).view(given.query.shape)
    mixed = _own_attention(given, own_keys, own_values).reshape(asking.shape)
    if len(plan.looking):
        mixed = mixed.index_copy(0, plan.looking, look(asking.index_select(0, plan.looking)))
    return mixed.view(given.query.shape)


def dense_attention(given: GatedInput) -> Tensor:
    """Attention over all earlier tokens and the request's own, whatever the gates say: [b, h, n, d]."""
    if given.requests > 1 or given.own_bias is not None:
        return gated_attention_masked(given._replace(gates=torch.ones_like(given.gates)))
    keys = torch.cat([given.earlier_keys, given.own_keys], -2)
    values = torch.cat([given.earlier_values, given.own_values], -2)
    return F.scaled_dot_product_attention(given.query, keys, values, scale=1.0)


class _Plan(NamedTuple):
    """What to gather; query blocks are numbered through batch, heads and blocks."""

    looking: Tensor
    """int64, the query blocks that look at anything earlier."""
    units: Tensor
    """int64, for each of them as many rows of the earlier units [b * h * units]."""
    requests: Tensor
    """int64, for each of them the request [b * h * requests] whose own tokens it sees."""
    padding: np.ndarray | None
    """bool [looking, units of each], which of them are not there; None where all are."""


def _plan(given: GatedInput) -> _Plan:
    """On the host: the gates are a few hundred bits, for which a device's many small operations cost more."""
    unit, blocks = math.gcd(*given.key_sizes), given.gates.shape[-2]
    opened = (given.gates > THRESHOLD).flatten(0, 2).cpu().numpy()
    looking = opened.any(1).nonzero()[0]
    wide = np.repeat(opened[looking], [size // unit for size in given.key_sizes], 1)
    counts = wide.sum(1)
    row, column = wide.nonzero()
    found = (looking // blocks * wide.shape[1])[row] + column
    padding = None
    if len(looking) and counts.min() < counts.max():
        padding = np.arange(counts.max()) >= counts[:, None]
        padded = np.zeros(padding.shape, dtype=np.int64)
        padded[~padding] = found
        found = padded.reshape(-1)
    requests = looking // blocks * given.requests + looking % blocks // (blocks // given.requests)
    device = given.query.device
    looking, found, requests = (torch.from_numpy(each).to(device) for each in (looking, found, requests))
    return _Plan(looking, found, requests, padding)


def _own_attention(given: GatedInput, own_keys: Tensor, own_values: Tensor) -> Tensor:
    """Attention of every request to its own tokens alone: [1, b * h * requests, n / requests, d]."""
    query = given.by_request(given.query).flatten(0, 2)[None]
    return F.scaled_dot_product_attention(query, own_keys[None], own_values[None], given.own_bias, scale=1.0)


def _gathered_bias(given: GatedInput, plan: _Plan, keys: int) -> Tensor | None:
    """What is added to the scores of the gathered tokens and a request's own: [1, looking, n / q or 1, keys]."""
    if plan.padding is None and given.own_bias is None:
        return None
    bias = given.query.new_zeros(1, len(plan.requests), 1, keys)
    if plan.padding is not None:
        unit = math.gcd(*given.key_sizes)
        wide = torch.from_numpy(np.repeat(plan.padding, unit, 1)).to(bias.device)
        bias[0, :, 0, : wide.shape[1]].masked_fill_(wide, float("-inf"))
    if given.own_bias is None:
        return bias
    own, blocks = given.own_bias.shape[-1], given.gates.shape[-2]
    of_block = given.own_bias.repeat(given.requests, 1).unflatten(0, (blocks, -1))
    of_block = of_block.repeat(given.query.shape[0] * given.query.shape[1], 1, 1)
    return bias + F.pad(of_block[plan.looking], (keys - own, 0))

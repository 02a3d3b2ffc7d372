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

    def logits(self, query_means: Tensor, key_means: Tensor) -> Tensor:
        """What alpha is the sigmoid of, from [b, h, q, d] and [b, h, k, d]: [b, h, q, k]."""
        # (scale * q W + w_k) k: the part that asks, once for each query block, then one product over the earlier blocks.
        asked = torch.baddbmm(
            self.key[:, None], (query_means * self.scale[:, None, None]).transpose(0, 1).flatten(1, 2), self.match
        )
        batch, heads, blocks, _ = query_means.shape
        asked = asked.view(heads, batch, blocks, -1).transpose(0, 1)
        asking = (query_means * self.query[:, None]).sum(-1, keepdim=True) + self.bias[:, None, None]
        return asked @ key_means.transpose(-1, -2) + asking

    def forward(self, query_means: Tensor, key_means: Tensor) -> Tensor:
        """alpha: [b, h, q, k]."""
        return torch.sigmoid(self.logits(query_means, key_means))


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


def attend_masked(given: GatedInput) -> tuple[Tensor, Tensor]:
    """`gated_attention_masked`, and where attention would go if every gate were open: the share of each earlier block
    among all earlier ones, averaged over a query block, [b, h, q, k]."""
    earlier, blocks = given.earlier_keys.shape[-2], given.gates.shape[-2]
    scores = torch.cat([given.query @ given.earlier_keys.transpose(-1, -2), given.own_scores().flatten(2, 3)], -1)
    weights = torch.softmax(scores.float(), -1).to(given.query.dtype)
    sizes = torch.tensor(given.key_sizes, device=scores.device)
    wide = given.gates.to(weights.dtype).repeat_interleave(sizes, -1)[..., None, :]
    elsewhere, home = weights[..., :earlier], weights[..., earlier:]
    looked_at = (elsewhere.unflatten(2, (blocks, -1)) * wide).flatten(2, 3)
    mixed = given.by_request(home) @ given.by_request(given.own_values)
    mixed = mixed.flatten(2, 3) + looked_at @ given.earlier_values
    total = looked_at.sum(-1, keepdim=True) + home.sum(-1, keepdim=True)
    by_block = elsewhere.unflatten(2, (blocks, -1)).mean(-2).float()
    mass = torch.stack([part.sum(-1) for part in by_block.split(list(given.key_sizes), -1)], -1)
    return mixed / total.clamp_min(1e-6), mass / mass.sum(-1, keepdim=True).clamp_min(1e-9)


def gated_attention_masked(given: GatedInput) -> Tensor:
    """Attention over all earlier tokens and the request's own, with closed earlier blocks weighted by zero: [b, h, n, d]."""
    return attend_masked(given)[0]


def gated_attention(given: GatedInput) -> Tensor:
    """The same numbers as `gated_attention_masked`, from the open blocks' keys and values alone: [b, h, n, d].

    Blocks are gathered in units of their greatest common size; a head's query block with fewer open ones than another
    is padded.
    """
    unit = math.gcd(*given.key_sizes)
    batch, heads, tokens, head_dim = given.query.shape
    blocks = given.gates.shape[-2]
    is_open = (given.gates > THRESHOLD).flatten(0, 1)
    if len(set(given.key_sizes)) > 1:
        units = torch.tensor([size // unit for size in given.key_sizes], device=is_open.device)
        is_open = is_open.repeat_interleave(units, -1)  # [b * h, q, units]
    counts = is_open.sum(-1)
    widest = int(counts.max())
    own = given.own_scores().view(batch * heads, blocks, tokens // blocks, -1)
    own_values = given.by_request(given.own_values)
    if widest == 0:
        weights = torch.softmax(own, -1).view(batch, heads, given.requests, tokens // given.requests, -1)
        return (weights @ own_values).view(given.query.shape)
    # Open units first, in their order; what follows them is padding.
    chosen = torch.topk(is_open.to(torch.int8), widest, dim=-1).indices  # [b * h, q, widest]
    first = torch.arange(batch * heads, device=is_open.device)[:, None, None] * is_open.shape[-1]
    rows = (chosen + first).flatten()
    keys, values = (
        part.reshape(-1, unit * head_dim).index_select(0, rows).view(batch * heads, blocks, widest * unit, head_dim)
        for part in (given.earlier_keys, given.earlier_values)
    )
    asking = given.query.reshape(batch * heads, blocks, tokens // blocks, head_dim)
    seen = asking @ keys.transpose(-1, -2)
    if int(counts.min()) < widest:
        padding = ~is_open.gather(-1, chosen).repeat_interleave(unit, -1)[:, :, None]
        seen = seen.masked_fill(padding, float("-inf"))
    weights = torch.softmax(torch.cat([seen, own], -1), -1)
    elsewhere, home = weights.split([seen.shape[-1], own.shape[-1]], -1)
    mixed = (elsewhere @ values).view(given.query.shape)
    home = home.reshape(batch, heads, given.requests, tokens // given.requests, -1)
    return mixed + (home @ own_values).view(given.query.shape)

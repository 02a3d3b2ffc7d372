"""The layers of a block in few and large operators, for the exported graphs: the numbers of `model.transformer.layers`.

At the sizes of one image an operator costs as much to start as it does to compute, and INT8 makes only the products
faster: what it gains is lost to everything else unless that is little.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.layers import Attention, KeepingAttention, RMSNorm
from model.transformer.model import Generator
from model.transformer.patterns import LocalAttention
from model.transformer.plan import Plan
from model.transformer.rope import Rotation


def with_lean_layers(generator: Generator) -> Generator:
    """A copy that computes the same."""
    lean = copy.deepcopy(generator)
    for block in lean.decoder_blocks():
        block.register_module("attention", LeanAttention(block.attention))
    if lean.plan is not None:
        lean.register_module("plan", LeanPlan(lean.plan))
    return lean


class LeanPlan(nn.Module):
    """What decoding needs of a `Plan`; its codes' values are looked up."""

    table: Tensor
    """[codes, channels]."""

    def __init__(self, plan: Plan):
        super().__init__()
        self.cells, self.prior, self.spread = plan.cells, plan.prior, plan.spread
        self.to_sketch, self.to_details, self.finer = plan.to_sketch, plan.to_details, plan.finer
        codes = torch.arange(plan.prior.indicators.shape[0])
        self.register_buffer("table", plan.values(codes))

    def values(self, codes: Tensor) -> Tensor:
        return F.embedding(codes, self.table)

    def sketch(self, values: Tensor) -> Tensor:
        return self.to_sketch(self._spread(values))

    def details(self, values: Tensor, stage: int = 1) -> Tensor:
        assert self.to_details is not None, "this shape has no details"
        return self.finer[stage - 1](self.to_details(self._spread(values)))

    def _spread(self, values: Tensor) -> Tensor:
        # Three axes: of two, the exporter makes a Gemm, which onnxruntime does not compute in INT8 with a bias in fp32.
        # Not `len`, which makes a traced batch a constant: the exporter would begin again, in a slower way.
        return self.spread(values.flatten(1)[:, None]).view(values.shape[0], self.cells, -1)


class LeanAttention(KeepingAttention):
    """`Attention`; queries and keys are normalised and turned together, and no head of keys is repeated."""

    def __init__(self, attention: Attention):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = attention.heads, attention.kv_heads, attention.head_dim
        self.qkv_proj, self.o_proj = attention.qkv_proj, attention.o_proj
        with torch.no_grad():
            query = attention.q_norm.weight * self.head_dim**-0.5
            norm = torch.stack([query] * self.heads + [attention.k_norm.weight] * self.kv_heads)[:, None]
            first, second = norm.chunk(2, -1)
        self.qk_norm, self.turned_norm = nn.Parameter(norm), nn.Parameter(torch.cat([-second, first], -1))
        self.unit = RMSNorm(self.head_dim, attention.q_norm.eps)

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None,
        past: Tensor | None = None,
        rotation: Rotation | None = None,
        local: LocalAttention | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `KeepingAttention`; where `local` is given, all of `x` are its cells."""
        batch, tokens, _ = x.shape
        heads = self.qkv_proj(x).view(batch, tokens, -1, self.head_dim).transpose(1, 2)
        both, value = heads.split([self.heads + self.kv_heads, self.kv_heads], 1)
        both = self.unit(both)
        if rotation is None:
            both = both * self.qk_norm
        else:
            first, second = both.chunk(2, -1)
            turned = torch.cat([second, first], -1)
            both = both * (self.qk_norm * rotation.cos) + turned * (self.turned_norm * rotation.sin)
        query, key = both.split([self.heads, self.kv_heads], 1)
        own_key, own_value = key, value
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        groups = self.heads // self.kv_heads
        if local is not None:
            mixed = local(query, key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1))
        else:
            scores = query.reshape(batch, self.kv_heads, groups * tokens, self.head_dim) @ key.transpose(-1, -2)
            if bias is not None:
                scores = scores + bias.repeat(groups, 1)
            mixed = (torch.softmax(scores, -1) @ value).view(batch, self.heads, tokens, self.head_dim)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)), own_key, own_value

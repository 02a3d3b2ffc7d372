"""The layers of a pre-norm decoder block: RMSNorm, grouped-query attention with head QK-norm, SwiGLU."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.transformer.patterns import LocalAttention
from model.transformer.rope import Rotation, rotate


class BlockShape(Protocol):
    """What a block needs of a configuration; `head_dim` may be another number than hidden_size / heads (Qwen3)."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def num_key_value_heads(self) -> int: ...
    @property
    def head_dim(self) -> int: ...
    @property
    def rms_norm_eps(self) -> float: ...


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis (Zhang and Sennrich 2019)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def gain(self) -> Tensor:
        """The weight of each channel, [size]."""
        return self.weight

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size], in the type of `x`; the mean square is taken in fp32 at least."""
        weight = self.gain().to(x.dtype)
        if self.training:
            return F.rms_norm(x, weight.shape, weight, self.eps)
        if x.dtype in (torch.bfloat16, torch.float16):  # rounded before the weight, as Qwen3 and Llama do
            wide = x.float()
            return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype) * weight
        # onnxruntime fuses the norm when it is written with a division, not with rsqrt.
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight


class KeepingAttention(nn.Module):
    """Attention that gives the keys and values of its input, for the next call."""

    @abstractmethod
    def attend(
        self,
        x: Tensor,
        bias: Tensor | None,
        past: Tensor | None = None,
        rotation: Rotation | None = None,
        local: LocalAttention | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Attend to `past` and to `x` itself.

        `x` [batch, tokens, hidden]; `bias` [tokens, past + tokens] is added to the scores, None adds nothing;
        `past` [2, batch, kv_heads, past, head_dim]; `rotation` turns the queries and keys of `x` by their positions
        (those of `past` are turned already), None leaves them as they are. Where `local` is given, the last tokens of `x`
        are its cells and attend by it, and `bias` is about the tokens before them alone. Returns [batch, tokens, hidden]
        and the keys and values of `x` alone, each [batch, kv_heads, tokens, head_dim].
        """

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        past: Tensor | None = None,
        rotation: Rotation | None = None,
        local: LocalAttention | None = None,
    ) -> tuple[Tensor, Tensor]:
        """`attend`, with the keys and values of `x` alone in one tensor, shaped as `past`."""
        mixed, key, value = self.attend(x, bias, past, rotation, local)
        return mixed, torch.stack([key, value])


class Attention(KeepingAttention):
    """Grouped-query attention with RMSNorm on each head's queries and keys (Qwen3, Emu3.5)."""

    def __init__(self, config: BlockShape):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = (
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.qkv_proj = nn.Linear(config.hidden_size, (self.heads + 2 * self.kv_heads) * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def attend(
        self,
        x: Tensor,
        bias: Tensor | None,
        past: Tensor | None = None,
        rotation: Rotation | None = None,
        local: LocalAttention | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = x.shape
        query, own_key, own_value = self.project(x, rotation)
        key, value = own_key, own_value
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        query, key, value = query * self.head_dim**-0.5, self._repeat(key), self._repeat(value)
        if local is None:
            mixed = _attend(query, key, value, bias)
        else:
            mixed, text = local(query[:, :, -local.cells :], key, value), tokens - local.cells
            if text:
                read = _attend(query[:, :, :text], key[:, :, :text], value[:, :, :text], bias)
                mixed = torch.cat([read, mixed], 2)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1)), own_key, own_value

    def attend_causally(self, x: Tensor, rotation: Rotation) -> Tensor:
        """Each token to itself and those before it, without their scores in memory: [batch, tokens, hidden] -> the same."""
        batch, tokens, _ = x.shape
        query, key, value = self.project(x, rotation)
        grouped = self.heads != self.kv_heads
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))

    def project(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """[batch, tokens, hidden] -> queries [batch, heads, tokens, head_dim], not scaled, and keys and values of
        `kv_heads` heads."""
        batch, tokens, _ = x.shape
        query, key, value = self.qkv_proj(x).split(
            [self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim], -1
        )
        query = self.q_norm(query.view(batch, tokens, self.heads, self.head_dim)).transpose(1, 2)
        key = self.k_norm(key.view(batch, tokens, self.kv_heads, self.head_dim)).transpose(1, 2)
        value = value.view(batch, tokens, self.kv_heads, self.head_dim).transpose(1, 2)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return query, key, value

    def _repeat(self, x: Tensor) -> Tensor:
        groups = self.heads // self.kv_heads
        return x if groups == 1 else x.repeat_interleave(groups, dim=1)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """[b, h, n, d], scaled, and twice [b, h, m, d] -> [b, h, n, d]."""
    # Explicit products: at these lengths SDPA's backward was 37% of a training step on a CPU.
    scores = query @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.softmax(scores, -1) @ value


class SwiGLU(nn.Module):
    """The gated feed-forward layer (Shazeer 2020); gate and up projections stand in one matrix, gate first."""

    def __init__(self, config: BlockShape):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """One pre-norm decoder block."""

    def __init__(self, config: BlockShape):
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x: Tensor,
        bias: Tensor | None,
        past: Tensor | None = None,
        rotation: Rotation | None = None,
        local: LocalAttention | None = None,
        *,
        last_alone: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """[batch, tokens, hidden] -> the same, or the last token alone, [batch, 1, hidden], and this block's keys and values
        (see `Attention.forward`)."""
        attended, present = self.attention(self.attention_norm(x), bias, past, rotation, local)
        x = x + attended
        return self._feed_forward(x[:, -1:] if last_alone else x), present

    def transform(
        self, x: Tensor, bias: Tensor | None, rotation: Rotation | None = None, local: LocalAttention | None = None
    ) -> Tensor:
        """`forward` where nothing is known before `x` and nothing is kept of it: [batch, tokens, hidden] -> the same."""
        return self._feed_forward(x + self.attention.attend(self.attention_norm(x), bias, None, rotation, local)[0])

    def transform_causally(self, x: Tensor, rotation: Rotation) -> Tensor:
        """`transform` where each token sees itself and those before it."""
        return self._feed_forward(x + self.attention.attend_causally(self.attention_norm(x), rotation))

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.mlp_norm(x))


@torch.no_grad()
def initialise(model: nn.Module, blocks: Sequence[Block], layers: int) -> None:
    """Variance-preserving linears; the residual branches of `blocks`, of `layers` in the whole model, shrunk by
    sqrt(2 * layers), as in GPT-2."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for block in blocks:
        for branch in (block.attention.o_proj, block.mlp.down_proj):
            branch.weight.mul_((2 * layers) ** -0.5)

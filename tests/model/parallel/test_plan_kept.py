"""What the planner counts for this project's engine, held against the tensors that a block keeps for its backward pass."""

from typing import Any

import pytest
import torch
from torch import Tensor

from model.parallel.plan.layout import Layout
from model.parallel.plan.memory import memory
from model.parallel.plan.shape import ModelShape
from model.transformer.config import DecoderConfig
from model.transformer.layers import Block, RMSNorm
from model.transformer.rope import rotation

_BATCH, _TOKENS = 2, 512
_CONFIG = DecoderConfig(
    vocab_size=2,
    hidden_size=96,
    intermediate_size=320,
    num_hidden_layers=1,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
)


class _FusedNorm(torch.autograd.Function):
    """Keeps its input alone, as a GPU's kernel does; a CPU's norm is several operations that keep more."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True)).to(x.dtype)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """The tensors that one block keeps under autocast, each storage once."""
    monkeypatch.setattr(RMSNorm, "forward", lambda _, x: _FusedNorm.apply(x))
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    block, x = Block(_CONFIG).train(), torch.randn(_BATCH, _TOKENS, _CONFIG.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        turned = block.transform_causally(x, rotation(torch.arange(_TOKENS), _CONFIG.head_dim, _CONFIG.rope_theta))
    assert turned.dtype == torch.float32  # residuals
    return found


def test_a_block_keeps_as_many_bytes_as_are_counted(kept: dict[int, Tensor]):
    shape = ModelShape.of("one block", _CONFIG, _TOKENS)
    counted = memory(shape, Layout(1, 1, 1, _BATCH, 1, zero=0))
    weights = {tuple(weight.shape) for weight in Block(_CONFIG).parameters()}
    sizes = {True: 0, False: 0}
    for tensor in kept.values():
        of_a_weight = tuple(tensor.shape) in weights or tuple(reversed(tensor.shape)) in weights
        sizes[of_a_weight] += tensor.untyped_storage().nbytes()
    assert sizes[False] == pytest.approx(counted.activations * 2**30, rel=0.03)
    copies = counted.weights * 2**30 - 4 * shape.parameters - 2 * shape.embedding_parameters
    assert sizes[True] == pytest.approx(copies, rel=0.01)

"""INT8 products of the blocks' matrices in torch: weights by channel, activations by token as they come."""

import copy

import torch
from torch import Tensor, nn

from model.transformer.model import Generator

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer without a bias whose product is torch's `_int_mm`, which on a GPU takes more than 16 rows."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear):
        super().__init__()
        assert linear.bias is None, "no block of ours has one"
        scale = linear.weight.detach().abs().amax(1, keepdim=True).float() / _LARGEST
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.T)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out], in the type of `x`."""
        rows = x.flatten(0, -2)
        by = (rows.abs().amax(1, keepdim=True).float() / _LARGEST).clamp(min=1e-12)
        whole = (rows / by).round().to(torch.int8)
        product = torch.ops.aten._int_mm(whole, self.weight.T)
        return (product * by * self.scale).to(x.dtype).unflatten(0, x.shape[:-1])


@torch.no_grad()
def with_int8_products(generator: Generator) -> Generator:
    """A copy whose blocks multiply in INT8; embeddings, heads, norms and attention stay as they are."""
    plain = copy.deepcopy(generator)
    for block in plain.decoder_blocks():
        for owner in (block.attention, block.mlp):
            for name, module in list(owner.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(owner, name, Int8Linear(module))
    return plain

"""Ways to attend to all earlier tokens at once: the gate is compared with the fastest of them.

Each is given the earlier keys and values in the layout that suits it, in a buffer with room for a request's own, so that
what is timed is the own tokens' copy and the attention alone.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model.transformer.gate import GatedInput, dense_attention

Attend = Callable[[], Tensor]


class Buffers:
    """Keys and values [1, heads, m + o, head_dim] of one layer, the request's own last."""

    def __init__(self, given: GatedInput, dtype: torch.dtype):
        self.given, self.dtype, self.earlier = given, dtype, given.earlier_keys.shape[-2]
        self.keys = torch.cat([given.earlier_keys, given.own_keys], 2).to(dtype)
        self.values = torch.cat([given.earlier_values, given.own_values], 2).to(dtype)
        self.keys_transposed = self.keys.transpose(-1, -2).contiguous()

    def fill(self) -> Tensor:
        """Put the own tokens in; the queries."""
        self.keys[:, :, self.earlier :] = self.given.own_keys
        self.values[:, :, self.earlier :] = self.given.own_values
        return self.given.query.to(self.dtype)

    def fill_transposed(self) -> Tensor:
        self.keys_transposed[..., self.earlier :] = self.given.own_keys.transpose(-1, -2)
        self.values[:, :, self.earlier :] = self.given.own_values
        return self.given.query.to(self.dtype)


def candidates(given: GatedInput) -> dict[str, Attend]:
    """Every way, by name, for one request: each gives [1, heads, n, head_dim] in fp32."""
    full, half = Buffers(given, torch.float32), Buffers(given, torch.bfloat16)
    return {
        "SDPA, concatenated": lambda: dense_attention(given),
        "SDPA, buffer": lambda: _sdpa(full),
        "SDPA, buffer, math": lambda: _sdpa_math(full),
        "explicit products": lambda: _explicit(full),
        "explicit, keys transposed": lambda: _explicit_transposed(full),
        "explicit, batched 3-D": lambda: _explicit_3d(full),
        "SDPA, buffer, bf16": lambda: _sdpa(half),
        "explicit products, bf16": lambda: _explicit(half),
        "explicit, keys transposed, bf16": lambda: _explicit_transposed(half),
    }


def _sdpa(buffers: Buffers) -> Tensor:
    return F.scaled_dot_product_attention(buffers.fill(), buffers.keys, buffers.values, scale=1.0).float()


def _sdpa_math(buffers: Buffers) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return _sdpa(buffers)


def _explicit(buffers: Buffers) -> Tensor:
    scores = buffers.fill() @ buffers.keys.transpose(-1, -2)
    return (torch.softmax(scores, -1) @ buffers.values).float()


def _explicit_transposed(buffers: Buffers) -> Tensor:
    scores = buffers.fill_transposed() @ buffers.keys_transposed
    return (torch.softmax(scores, -1) @ buffers.values).float()


def _explicit_3d(buffers: Buffers) -> Tensor:
    scores = torch.bmm(buffers.fill()[0], buffers.keys[0].transpose(-1, -2))
    return torch.bmm(torch.softmax(scores, -1), buffers.values[0])[None].float()

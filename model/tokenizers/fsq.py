"""Finite scalar quantization (Mentzer et al. 2023): a code book without learned entries."""

from math import prod

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Rounds each of a few bounded channels to its own number of levels; a code is the tuple of levels.

    code = sum of level_i * product of the earlier channels' level counts. Quantized values are spread evenly
    over -1..1 in every channel.
    """

    half_width: Tensor
    offset: Tensor
    strides: Tensor
    sizes: Tensor

    def __init__(self, levels: tuple[int, ...]):
        super().__init__()
        self.codes = prod(levels)
        sizes = torch.tensor(levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("strides", torch.tensor([prod(levels[:i]) for i in range(len(levels))]), persistent=False)
        self.register_buffer("half_width", (sizes - 1) / 2, persistent=False)
        # An even number of levels has none in the middle: its grid lies half a step off the integers.
        self.register_buffer("offset", (sizes % 2 == 0) * 0.5, persistent=False)

    def quantize(self, latents: Tensor) -> Tensor:
        """float [..., channels] -> values in -1..1, same shape; gradients pass as if nothing was rounded."""
        bounded = torch.tanh(latents.float()) * self.half_width
        rounded = torch.round(bounded - self.offset) + self.offset
        rounded = torch.minimum(torch.maximum(rounded, -self.half_width), self.half_width)
        return (bounded + (rounded - bounded).detach()) / self.half_width

    def to_codes(self, values: Tensor) -> Tensor:
        """Quantized values [..., channels] -> int64 codes [...]."""
        level = torch.round(values * self.half_width + self.half_width).long()
        return (level * self.strides).sum(-1)

    def to_values(self, codes: Tensor) -> Tensor:
        """int64 codes [...] -> values in -1..1 [..., channels]."""
        level = torch.div(codes[..., None], self.strides, rounding_mode="floor") % self.sizes
        return (level - self.half_width) / self.half_width

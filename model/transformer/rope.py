"""Rotary position embedding (Su et al. 2021), in the half-split form of Llama, Qwen3 and Emu3.5."""

from typing import NamedTuple

import torch
from torch import Tensor


class Rotation(NamedTuple):
    """Cosines and sines of the positions' angles, each [tokens, head_dim]."""

    cos: Tensor
    sin: Tensor


def rotation(positions: Tensor, head_dim: int, theta: float) -> Rotation:
    """int [tokens] -> the rotation of each position; the i-th pair of a head turns by position / theta^(2i / head_dim).

    The angles are computed in fp32 whatever the model's type: bf16 cannot tell positions beyond 256 apart.
    """
    pair = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32)
    angle = positions.to(torch.float32)[:, None] * theta ** (-pair / head_dim)
    angle = torch.cat([angle, angle], -1)
    return Rotation(angle.cos(), angle.sin())


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """[..., tokens, head_dim] -> the same, each pair (i, i + head_dim / 2) turned by its position's angle."""
    first, second = x.chunk(2, -1)
    turned = torch.cat([-second, first], -1)
    return x * by.cos.to(x.dtype) + turned * by.sin.to(x.dtype)

"""Blocks compiled by TorchInductor: what lies between their matrix products becomes a few fused kernels."""

from collections.abc import Iterable

import torch
import torch._functorch.config as functorch_config
from torch import nn

from model.transformer.layers import Block

_PASSES = ("transform", "transform_causally")
"""A block's functions that a training calls."""


def compile_blocks(parts: Iterable[nn.Module], *, staged: bool) -> None:
    """Let every block of these layers compile when it is called first, for the shapes that it is given.

    Blocks of one shape share what was compiled. Takes a C++ compiler where there is no GPU.
    """
    if staged:
        # The pipeline's backward pass keeps a stage's graph until the last of its outputs; a compiled one may reuse what
        # it has read once.
        functorch_config.donated_buffer = False
    for part in parts:
        for block in part.modules():
            if isinstance(block, Block):
                for name in _PASSES:
                    setattr(block, name, torch.compile(getattr(block, name), dynamic=False))

"""What the ranks that share a layer tell each other, by the name of the place that needs it.

Forward and backward mirror each other (Shoeybi et al. 2019, "Megatron-LM", figure 3): where every rank reads the same
input (`share`), the gradients of their parts add up; where the ranks' partial outputs add up (`add`), each gets the
gradient of the whole. The name of a place shows in a profile, and in the report of a collective that hangs.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.profiler import record_function

Group = dist.ProcessGroup


def all_reduce(tensor: Tensor, group: Group, place: str, *, largest: bool = False) -> Tensor:
    """The sum over the group, or the `largest`, element by element, in a tensor of its own."""
    result = tensor.detach().clone(memory_format=torch.contiguous_format)
    with record_function(f"all_reduce {place}"):
        dist.all_reduce(result, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM, group)
    return result


def share(x: Tensor, group: Group, place: str) -> Tensor:
    """`x`, which is the same on every rank and of which each computes a part: their gradients are added up."""
    result = _Share.apply(x, group, place)
    assert isinstance(result, Tensor)
    return result


def add(x: Tensor, group: Group, place: str) -> Tensor:
    """The sum of the ranks' `x`; the gradient of the sum is that of each."""
    result = _Add.apply(x, group, place)
    assert isinstance(result, Tensor)
    return result


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, place: str) -> Tensor:
        ctx.group, ctx.place = group, place
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return all_reduce(gradients[0], ctx.group, ctx.place), None, None


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, group: Group, place: str) -> Tensor:
        return all_reduce(x, group, place)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0], None, None

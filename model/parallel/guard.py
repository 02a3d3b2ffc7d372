"""The step of an optimizer, guarded: gradients are clipped over all ranks that share a model, and no rank steps on one
that is not finite."""

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from model.parallel.collectives import Group, all_reduce
from model.parallel.cuts import cut_of


class GuardedOptimizer(torch.optim.Optimizer):
    """An optimizer in the place of `inner`, which sees its groups; for gradients that are whole (ZeRO-0)."""

    def __init__(
        self,
        inner: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        largest_norm: float,
        *,
        counts_whole: bool = True,
        group: Group | None = None,
    ):
        """`parameters` are this rank's. `group` are the ranks that share one model, None where none do; of parameters that
        all of a tensor group have whole, one of them `counts_whole`."""
        self.inner, self._parameters, self._largest_norm = inner, list(parameters), largest_norm
        self._counts_whole, self._group = counts_whole, group
        self.norm, self.stepped = 0.0, True
        """Of the last step: the norm of all gradients before they were clipped, and whether they were finite."""
        super().__init__([{"params": self._parameters}], {})
        self.param_groups = inner.param_groups

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Clip and step; where the norm is not finite, on any rank, none steps.

        What nothing was asked of has a gradient of zero, not none: so it is where DeepSpeed averages gradients over ranks,
        and weight decay and momentum move it as much in every layout.
        """
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        squares = self._own_squares()
        if self._group is not None:
            squares = all_reduce(squares, self._group, "gradient norm")
        self.norm = squares.sqrt().item()
        self.stepped = math.isfinite(self.norm)
        if not self.stepped:
            return
        if self.norm > self._largest_norm:
            gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
            torch._foreach_mul_(gradients, self._largest_norm / (self.norm + 1e-6))  # pyright: ignore[reportPrivateImportUsage]
        self.inner.step(closure)

    def _own_squares(self) -> Tensor:
        """Sum of the squares of the gradients that this rank counts, a scalar."""
        counted = [
            parameter.grad
            for parameter in self._parameters
            if parameter.grad is not None and (self._counts_whole or cut_of(parameter) is not None)
        ]
        if not counted:
            return torch.zeros((), device=self._parameters[0].device)
        return torch.stack(torch._foreach_norm(counted)).square().sum()  # pyright: ignore[reportPrivateImportUsage]

"""Embeddings and heads of the visual vocabulary.

An FSQ code is a tuple of levels, and codes that share levels look alike. A table over the codes plus a table
over the levels of each channel learns that at once: the same recipe without it reached a third less accuracy.
"""

from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def code_levels(levels: tuple[int, ...]) -> Tensor:
    """Row of the level table for each channel of each code: int64 [codes, channels].

    Code = sum of level_i * product of the earlier channels' sizes, as in `model.tokenizers.visual`.
    """
    code = torch.arange(prod(levels))
    rows, stride, offset = [], 1, 0
    for size in levels:
        rows.append(offset + (code // stride) % size)
        stride, offset = stride * size, offset + size
    return torch.stack(rows, 1)


def level_indicators(levels: tuple[int, ...]) -> Tensor:
    """Ones where a code has a level: float [codes, sum of levels]."""
    return torch.zeros(prod(levels), sum(levels)).scatter_(1, code_levels(levels), 1.0)


class FactoredTable(nn.Module):
    """One vector per visual code: its own, plus one for each of its levels; `extra` more ids have only their own."""

    rows_of_levels: Tensor

    def __init__(self, levels: tuple[int, ...], hidden_size: int, *, extra: int = 0, std: float = 0.02):
        super().__init__()
        self.extra = extra
        self.own = nn.Parameter(torch.randn(prod(levels) + extra, hidden_size) * std * 0.5)
        self.levels = nn.Parameter(torch.randn(sum(levels), hidden_size) * std)
        self.register_buffer("rows_of_levels", code_levels(levels), persistent=False)

    def weight(self) -> Tensor:
        """The whole table: [codes + extra, hidden]."""
        shared = self.levels[self.rows_of_levels].sum(1)
        return self.own + F.pad(shared, (0, 0, 0, self.extra))

    def forward(self, ids: Tensor) -> Tensor:
        """int64 [...] -> [..., hidden]."""
        return F.embedding(ids, self.weight())


class FactoredHead(nn.Module):
    """Logits over the visual codes for each of `outputs` tokens per position."""

    def __init__(self, levels: tuple[int, ...], hidden_size: int, outputs: int = 1):
        super().__init__()
        std = 0.5 * hidden_size**-0.5
        self.tables = nn.ModuleList(FactoredTable(levels, hidden_size, std=std) for _ in range(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs * prod(levels)))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, tokens, hidden] -> [batch, tokens, outputs * codes]."""
        weight = torch.cat([table.weight() for table in self.tables])  # pyright: ignore[reportCallIssue]
        return F.linear(x, weight, self.bias)


class CodeLoss(nn.Module):
    """Cross-entropy over the visual codes. A module, so that one whose logits lie on several ranks can take its place."""

    def forward(self, logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """Mean in nats, in fp32: [tokens, codes] and int64 [tokens]."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)

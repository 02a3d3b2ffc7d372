"""How ranks share the work of one training: tensor, pipeline and data parallel."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import UsageError
from model.transformer.config import DecoderConfig, GeneratorConfig

_NAMED = 3
"""Layouts that an error names in the place of one that does not go."""


@dataclass(frozen=True)
class ParallelLayout:
    """Every rank has a place on three axes. Neighbours in number share layers (tensor), which talk most; the stages of a
    pipeline are furthest apart."""

    tensor: int = 1
    pipeline: int = 1
    data: int = 1

    @property
    def ranks(self) -> int:
        return self.tensor * self.pipeline * self.data

    def __str__(self) -> str:
        return f"tensor {self.tensor} x pipeline {self.pipeline} x data {self.data}"


@dataclass(frozen=True)
class Divisible:
    """What a layout must divide: a model's shape, and the images of a step."""

    heads: int
    kv_heads: int
    feed_forward: int
    layers: int
    batch: int

    @classmethod
    def of(cls, shape: GeneratorConfig | DecoderConfig, batch: int) -> "Divisible":
        return cls(
            shape.num_attention_heads,
            shape.num_key_value_heads,
            shape.intermediate_size,
            shape.num_hidden_layers,
            batch,
        )

    def why_not(self, layout: ParallelLayout) -> str | None:
        """Why it cannot be laid out so; None where it can."""
        for count, name in ((self.heads, "heads"), (self.kv_heads, "key and value heads")):
            if count % layout.tensor:
                return f"{count} {name} are not a multiple of tensor {layout.tensor}"
        if self.feed_forward % layout.tensor:
            return f"{self.feed_forward} feed-forward channels are not a multiple of tensor {layout.tensor}"
        if layout.pipeline > self.layers:
            return f"{self.layers} layers are fewer than pipeline {layout.pipeline}"
        if self.batch % layout.data:
            return f"a batch of {self.batch} is not a multiple of data {layout.data}"
        return None


def _always(layout: ParallelLayout) -> bool:
    return True


def choose_layout(
    tensor: int,
    pipeline: int,
    ranks: int,
    sizes: Divisible,
    *,
    where: str,
    goes: Callable[[ParallelLayout], bool] = _always,
) -> ParallelLayout:
    """The layout of `ranks` with so much tensor and pipeline parallel; what is left is data parallel.

    Raises `UsageError` where it does not divide, which names the nearest layouts of as many ranks that divide and `goes`
    allows.
    """
    asked = ParallelLayout(tensor, pipeline, max(1, ranks // (tensor * pipeline)))
    problem = sizes.why_not(asked)
    if asked.ranks != ranks:
        problem = f"{ranks} ranks are not a multiple of tensor {tensor} x pipeline {pipeline}"
    if problem is None:
        return asked
    near = nearest(asked, ranks, sizes, goes)
    raise UsageError(
        problem, where=where, fix=f"nearest that go with {ranks} ranks: {'; '.join(map(str, near)) or 'none'}"
    )


def nearest(
    asked: ParallelLayout, ranks: int, sizes: Divisible, goes: Callable[[ParallelLayout], bool] = _always
) -> list[ParallelLayout]:
    """The layouts of so many ranks that go and differ least from `asked`, in factors along the axes."""
    going = [layout for layout in layouts(ranks) if sizes.why_not(layout) is None and goes(layout)]

    def distance(layout: ParallelLayout) -> float:
        pairs = ((layout.tensor, asked.tensor), (layout.pipeline, asked.pipeline), (layout.data, asked.data))
        return sum(abs(math.log(own / other)) for own, other in pairs)

    return sorted(going, key=distance)[:_NAMED]


def layouts(ranks: int) -> list[ParallelLayout]:
    """All layouts of so many ranks."""
    divisors = [divisor for divisor in range(1, ranks + 1) if ranks % divisor == 0]
    return [
        ParallelLayout(tensor, pipeline, ranks // (tensor * pipeline))
        for tensor in divisors
        for pipeline in divisors
        if ranks % (tensor * pipeline) == 0
    ]

"""How long attention to earlier scenes takes: dense in every way there is, and through the gate with the gate's own cost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from benchmarks.dense_attention import candidates
from model.transformer.gate import GatedInput, gated_attention
from model.transformer.story import LayerContext, StoryGenerator

Timed = Callable[[], object]
Times = dict[str, list[float]]
"""Milliseconds of each round, by name."""


@dataclass(frozen=True)
class Request:
    """One request to one story, with what its attention gets in each looking layer."""

    model: StoryGenerator
    context: list[LayerContext]
    text: Tensor
    """int64 [1, 1, text_length]."""
    inputs: list[GatedInput]

    @classmethod
    def of(cls, model: StoryGenerator, context: list[LayerContext], text: Tensor) -> "Request":
        return cls(model, context, text, model.attention_inputs(context, text))

    def dense(self) -> dict[str, Timed]:
        """The attention of all looking layers, in every dense way."""
        layers = [candidates(given) for given in self.inputs]
        return {name: lambda name=name: [layer[name]() for layer in layers] for name in layers[0]}

    def gated(self) -> Timed:
        """The same through the gate: its decision, and attention to what it opened."""

        def attend() -> list[Tensor]:
            both = zip(self.inputs, self.context, strict=True)
            return [gated_attention(g._replace(gates=self.model.open_gates(g.query, earlier))) for g, earlier in both]

        return attend

    def masked(self, gates: list[Tensor]) -> Timed:
        """The same with gates that cost nothing."""
        inputs = [given._replace(gates=opened) for given, opened in zip(self.inputs, gates, strict=True)]
        return lambda: [gated_attention(given) for given in inputs]

    def whole(self, gates: list[Tensor] | None = None) -> Timed:
        """From the request's text to the sketch's logits; the context is there already."""
        return lambda: self.model.ask(self.context, self.text, gates)


def interleave(rounds: int, prepare: Callable[[int], Mapping[str, Timed]]) -> Times:
    """Time everything once a round, in an order that turns round each time, each right after a run that is not timed; the
    first round does not count. `prepare` gives the round's work."""
    times: Times = {}
    with torch.inference_mode():
        for number in range(rounds + 1):
            work = prepare(number)
            for name in work if number % 2 else reversed(list(work)):
                work[name]()
                start = perf_counter()
                work[name]()
                if number:
                    times.setdefault(name, []).append(1000 * (perf_counter() - start))
    return times


def median(times: list[float]) -> float:
    return float(np.median(times))


def fastest(times: Times) -> str:
    """The name with the smallest median."""
    return min(times, key=lambda name: median(times[name]))

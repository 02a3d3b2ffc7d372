"""Copies of a decoder side by side, each in a process of its own: the most images that a machine's cores draw, where a call
does not use all of them well."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.decoders import Decoder

_held: dict[str, Decoder] = {}
"""The decoders of a copy's own process."""


class Copies:
    """Processes that hold the same decoders."""

    def __init__(self, stack: ExitStack, open_decoders: Callable[[], dict[str, Decoder]], count: int):
        """Start `count` of them, which end when `stack` closes. Each calls `open_decoders`, which can be pickled, and holds
        what that gives by the decoders' names."""
        start = partial(ProcessPoolExecutor, 1, get_context("spawn"), _open, (open_decoders,))
        self._pools = [stack.enter_context(start()) for _ in range(count)]
        self._all(_names, [()] * count)  # none is timed while another one still opens

    def decoder(self, of: Decoder) -> "SideBySide":
        """The decoder of the name of `of` that every copy holds, all of them together."""
        return SideBySide(of.name, of.parameters, partial(self.draw, of.name), self)

    def draw(self, name: str, text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
        """The images of all prompts, each copy's share in one call."""
        own_seeds = [part.tolist() for part in np.array_split(seeds, len(self._pools))]
        shares = [(name, part, own) for part, own in zip(self._dealt(text_ids), own_seeds, strict=True) if own]
        return np.concatenate(self._all(_draw, shares))

    def batch_ms(self, name: str, text_ids: np.ndarray, count: int) -> list[list[float]]:
        """Milliseconds of each of `count` calls of each copy that has a share of the prompts. No copy waits for another."""
        return self._all(_batch_ms, [(name, part, count) for part in self._dealt(text_ids) if len(part)])

    def _dealt(self, text_ids: np.ndarray) -> list[np.ndarray]:
        return np.array_split(text_ids, len(self._pools))

    def _all(self, call: Callable[..., Any], arguments: list[tuple]) -> list[Any]:
        """What `call` gives in each copy that there are arguments for, all at the same time."""
        given = [pool.submit(call, *own) for pool, own in zip(self._pools, arguments, strict=False)]
        return [future.result() for future in given]


@dataclass(frozen=True)
class SideBySide(Decoder):
    """A decoder of which every copy draws a share of the prompts."""

    copies: Copies

    def batch_ms(self, text_ids: np.ndarray, count: int, now: Callable[[], float] = perf_counter) -> list[float]:
        """As of one decoder, by the copies' own clocks: a batch takes as long as a share of it does in the mean."""
        return np.mean(self.copies.batch_ms(self.name, text_ids, count), axis=0).tolist()


def _open(open_decoders: Callable[[], dict[str, Decoder]]) -> None:
    _held.update(open_decoders())


def _names() -> list[str]:
    return list(_held)


def _draw(name: str, text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
    return _held[name].draw(text_ids, seeds)


def _batch_ms(name: str, text_ids: np.ndarray, count: int) -> list[float]:
    return _held[name].batch_ms(text_ids, count)

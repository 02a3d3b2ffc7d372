"""The best autoregressive decoder in every way that is tried to run it: the engine of its cells, a call for each or one for
all, threads, a process for each core, images at once.

All ways are tried once. Those that came near the fastest are measured again in every round, and the fastest of them is what
counts: no time goes to a way that lost by more than chance gives.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks import checkpoints
from benchmarks.decode_rows import AUTOREGRESSIVE, BEST_AR, ENGINES, open_engines
from benchmarks.decoders import Decoder, Engine, open_engine
from benchmarks.side_by_side import Copies
from benchmarks.torch_cells import torch_decoder
from model.decoding.autoregressive import NextTokenOptions

BATCHES = (1, 4, 16, 32, 64)
ONNX, ONE_GRAPH, EAGER, COMPILED = "onnxruntime", "onnxruntime, one graph", "torch, eager", "torch, compiled"
COPIES = {engine: f"{engine}, a process for each core" for engine in (ONNX, ONE_GRAPH)}
"""Several of them side by side, each on one thread, that share the images of a batch."""
_NEAR = 1.4
"""Ways that take up to so many times as long as the fastest are measured in every round."""
_TRIES = 2


@dataclass(frozen=True)
class Way:
    """How it is run."""

    engine: str
    threads: int
    batch: int


def open_ways(stack: ExitStack) -> dict[tuple[str, int], Decoder]:
    """The decoder by engine and threads, until `stack` closes: onnxruntime on one thread and on as many as there are cores, and
    with one thread in a process for each core; torch on all cores, where compiling twice takes most of a minute already."""
    kept, options, _ = AUTOREGRESSIVE[BEST_AR]
    assert isinstance(options, NextTokenOptions)
    first, tokenizers, cores = open_engines(stack, [kept], 1)[kept], checkpoints.load_tokenizers(), os.cpu_count() or 1
    engines = {
        threads: open_engine(first.folder, first.generator, tokenizers, next_token=True, threads=threads)
        for threads in sorted({1, cores})
    }
    by_onnx = {
        (name, threads): decoder for threads, engine in engines.items() for name, decoder in _by_onnx(engine).items()
    }
    copies = Copies(stack, partial(_open_copy, first.folder), cores)  # the one graph was made, and lies in the folder
    by_copies = {(COPIES[name], 1): copies.decoder(by_onnx[name, 1]) for name in COPIES}
    by_torch = {
        (name, cores): torch_decoder(engines[cores], name, options, compiled=name == COMPILED, threads=cores)
        for name in (EAGER, COMPILED)
    }
    return by_onnx | by_copies | by_torch


def _by_onnx(engine: Engine) -> dict[str, Decoder]:
    _, options, cache = AUTOREGRESSIVE[BEST_AR]
    assert isinstance(options, NextTokenOptions)
    return {
        ONNX: engine.autoregressive(ONNX, options, cache=cache),
        ONE_GRAPH: engine.next_at_once(ONE_GRAPH, options),
    }


def _open_copy(folder: Path) -> dict[str, Decoder]:
    """The decoders of the graphs in `folder`, on one thread."""
    torch.set_num_threads(1)
    kept, _, _ = AUTOREGRESSIVE[BEST_AR]
    generator = checkpoints.load(ENGINES[kept][0])
    return _by_onnx(open_engine(folder, generator, checkpoints.load_tokenizers(), next_token=True, threads=1))


class Baseline:
    """What was measured of it."""

    def __init__(
        self,
        decoders: dict[tuple[str, int], Decoder],
        prompts: np.ndarray,
        now: Callable[[], float] = perf_counter,
    ):
        """`prompts` int64 [n, text_length], as many as the largest batch; `now` gives seconds."""
        self._decoders, self._prompts, self._now = decoders, prompts, now
        self.tried: dict[Way, float] = {}
        """Milliseconds of a batch, once, by every way."""
        self.latency_ms: list[list[float]] = []
        """Of single images, of the fastest way in each round."""
        self.images_per_s: dict[Way, list[float]] = {}
        """A number for each round, of the ways that came near the fastest."""

    def try_all(self) -> None:
        """Draw with every way: the faster of two batches after a first one, with which it is compiled."""
        for engine, threads in self._decoders:
            for batch in BATCHES:
                way = Way(engine, threads, batch)
                self.tried[way] = min(self._times(way, _TRIES))

    def round(self, images: int) -> None:
        """Of every way that came near: `images` of them one by one, and about as many in batches."""
        self.latency_ms.append(min((self._times(way, images) for way in self._near(self.single())), key=np.median))
        for way in self._near(self.tried):
            seconds = float(np.median(self._times(way, max(2, images // way.batch)))) / 1000
            self.images_per_s.setdefault(way, []).append(way.batch / seconds)

    def single(self) -> dict[Way, float]:
        """Those of `tried` that draw one image at a time."""
        return {way: ms for way, ms in self.tried.items() if way.batch == 1}

    def best(self) -> Way:
        """With which most images a second were drawn."""
        return max(self.images_per_s, key=lambda way: np.median(self.images_per_s[way]))

    def decoder(self, way: Way) -> Decoder:
        return self._decoders[way.engine, way.threads]

    def describe(self) -> list[dict[str, Any]]:
        """Every way with what it gave, the fastest first; the rates of those that were measured again are of the rounds."""
        rows = [
            asdict(way)
            | {
                "images_per_s": float(np.median(self.images_per_s.get(way, [1000 * way.batch / ms]))),
                "rounds": len(self.images_per_s.get(way, ())),
            }
            for way, ms in self.tried.items()
        ]
        return sorted(rows, key=lambda row: -row["images_per_s"])

    def by_engine(self) -> Iterator[tuple[str, float, float]]:
        """Each engine of the cells, with the milliseconds of an image and the images a second at its best, as tried."""
        for engine in dict.fromkeys(way.engine for way in self.tried):
            own = {way: ms for way, ms in self.tried.items() if way.engine == engine}
            yield (
                engine,
                min(ms for way, ms in own.items() if way.batch == 1),
                max(1000 * way.batch / ms for way, ms in own.items()),
            )

    def _near(self, times: dict[Way, float]) -> list[Way]:
        fastest = min(ms / way.batch for way, ms in times.items())
        return [way for way, ms in times.items() if ms / way.batch <= _NEAR * fastest]

    def _times(self, way: Way, count: int) -> list[float]:
        """Milliseconds of each of `count` batches, after one that is not counted."""
        return self.decoder(way).batch_ms(self._prompts[: way.batch], count, self._now)

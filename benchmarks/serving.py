"""What does the served model give: time to the first preview and to the image, images a second, and what Triton costs?

    emuflow bench serving --json FILE

The kept progressive checkpoint in INT8, packaged with the pipeline's default settings, behind the real Triton server on
this machine; the load comes from a process of its own, with another caption in every request. An image is asked for alone
where its own latency and throughput are meant, and with its preview where that one's is. Beside it, in turn in every round:
the same engine in process, the best autoregressive decoder (next token + details, KV cache, fp32, onnxruntime, as many threads as there are cores, the
best of several batch sizes), and the naive one (raster, no cache, fp32, eager torch, batch 1).
"""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decode_rows import AUTOREGRESSIVE, BEST_AR, NAIVE, open_engines
from benchmarks.decoders import Decoder
from benchmarks.image_quality import BOOTSTRAP, Questions
from benchmarks.load import Load, run_load
from benchmarks.report import Announcer, Check, Report, Row, command_line
from benchmarks.served_package import build
from components.export.settings import DecodingSettings, ExportSettings
from components.ingest.digit_world.scenes import all_captions
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.transformer.model import Generator as TorchGenerator
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request
from serving.server import TritonServer

_MODEL = "measured"
_CLIENTS = 16
_BATCHES = (1, 4, 16)
_LOADED = (0.5, 0.8)
"""Shares of the capacity at which latency is measured, with requests at random times."""
_IN_PROCESS = "in process"
_SERVED, _SERVED_16 = "served, 1 client", f"served, {_CLIENTS} clients"
_PREVIEWED, _PREVIEWED_16 = f"{_SERVED}, with previews", f"{_SERVED_16}, with previews"
_AGAIN, _FEW = f"{_PREVIEWED}, the same prompts again", 5
_BEST, _EAGER = f"{BEST_AR}, fp32", "next token, raster, no cache, eager torch (naive)"


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    rounds: int = 7
    seconds: float = 4.0
    """Of each load in each round."""
    images: int = 20
    """Of each decoder in process in each round."""
    naive_images: int = 20
    """Of the naive decoder, all in all: one takes a second."""


@dataclass
class Samples:
    """What was measured of one row: a list for each round."""

    image_ms: list[list[float]] = field(default_factory=list)
    preview_ms: list[list[float]] = field(default_factory=list)
    images_per_s: list[float] = field(default_factory=list)

    def add(self, load: Load) -> None:
        if load.errors:
            raise RuntimeError(f"{len(load.errors)} requests were not answered, the first one: {load.errors[0]}")
        self.image_ms.append(load.image_ms)
        self.preview_ms.append(load.preview_ms)
        self.images_per_s.append(load.images_per_s)

    def quantile(self, share: float) -> float:
        return float(np.quantile(np.concatenate(self.image_ms), share))

    def medians(self) -> np.ndarray:
        """Milliseconds to the image, a number for each round."""
        return np.array([np.median(times) for times in self.image_ms])

    def row(self, name: str) -> Row:
        more: dict[str, float] = {"p99_ms": self.quantile(0.99)}
        if self.preview_ms:
            previews = np.concatenate(self.preview_ms)
            more |= {"preview_p50_ms": float(np.median(previews)), "preview_p95_ms": float(np.quantile(previews, 0.95))}
        if self.images_per_s:
            more["images_per_s"] = float(np.median(self.images_per_s))
        return Row(name, self.quantile(0.5), self.quantile(0.95), n=sum(map(len, self.image_ms)), more=more)


def run(console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, write `file`; whether every bound holds."""
    amount = amount or Amount()
    report = Report("serving", command_line(), columns=("images_per_s",))
    announce = Announcer(console)
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="emuflow-serving-")))
        announce("packaging the model")
        settings = ExportSettings()
        package = build("progressive", "int8", DecodingSettings(), settings, work, work / "keys")
        announce("starting Triton")
        server = stack.enter_context(TritonServer(work / "server", work / "keys"))
        server.load(package, _MODEL, expected_digest=package.name)
        bench = Bench(server.grpc_endpoint, Generator(package / "1"), stack, amount)
        for number in range(amount.rounds):
            announce(f"round {number + 1} of {amount.rounds}")
            bench.round(number)
        announce("at a part of the capacity")
        bench.part_loads()
        announce("the naive decoder")
        bench.naive()
        report.rows += [samples.row(name) for name, samples in bench.rows.items()]
        report.checks += bench.checks()
        report.notes |= {"export": settings.model_dump(mode="json"), "best_ar_batch": bench.best_batch()}
    return report.finish(console, file)


class Bench:
    """The measurements of one run."""

    def __init__(self, endpoint: str, generator: Generator, stack: ExitStack, amount: Amount):
        self._endpoint, self._generator, self._amount = endpoint, generator, amount
        cores = os.cpu_count() or 1
        kept, options, cache = AUTOREGRESSIVE[BEST_AR]
        self._autoregressive = {
            threads: open_engines(stack, [kept], threads)[kept].autoregressive(BEST_AR, options, cache=cache)
            for threads in sorted({1, cores})
        }
        text_length = checkpoints.load("progressive").config.text_length
        self._prompts = Questions.of(checkpoints.load_tokenizers().text, text_length, max(_BATCHES)).text_ids
        self._captions = np.random.default_rng(0).permutation(all_captions()).tolist()
        names = (_IN_PROCESS, _SERVED, _SERVED_16, _PREVIEWED, _PREVIEWED_16, _AGAIN, _BEST)
        self.rows = {name: Samples() for name in names}
        self._batched: dict[tuple[int, int], list[float]] = {}
        """Images a second of the best autoregressive decoder, by threads and batch, a number for each round."""

    def round(self, number: int) -> None:
        """Everything once, in an order that turns round each time."""
        loads: list[Callable[[], None]] = [
            partial(self._served, _SERVED, clients=1, previews=False, seed=number),
            partial(self._served, _PREVIEWED, clients=1, seed=2 * number),
            partial(self._served, _AGAIN, clients=1, seed=number, prompts=_FEW),
            partial(self._served, _SERVED_16, clients=_CLIENTS, previews=False, seed=number),
            partial(self._served, _PREVIEWED_16, clients=_CLIENTS, seed=2 * number + 1),  # other captions
        ]
        parts = [self._in_process, *loads, self._best_ar]
        for part in parts if number % 2 else reversed(parts):
            part()

    def _in_process(self) -> None:
        """Images alone, without a preview."""
        times = []
        for number in range(self._amount.images):
            start = perf_counter()
            caption = self._captions.pop()
            list(self._generator.images(Request(caption, number, None, None, previews=False)))
            times.append(1000 * (perf_counter() - start))
        self.rows[_IN_PROCESS].image_ms.append(times)

    def _served(self, row: str, **load: Any) -> None:
        self.rows[row].add(run_load(self._endpoint, _MODEL, seconds=self._amount.seconds, **load))

    def _best_ar(self) -> None:
        """Latency with the better number of threads; throughput for each number of threads and batch."""
        latencies = [self._times(decoder, 1, self._amount.images) for decoder in self._autoregressive.values()]
        self.rows[_BEST].image_ms.append(min(latencies, key=np.median))
        for threads, decoder in self._autoregressive.items():
            for batch in _BATCHES:
                images = max(2, self._amount.images // batch)
                seconds = float(np.median(self._times(decoder, batch, images))) / 1000
                self._batched.setdefault((threads, batch), []).append(batch / seconds)

    def _times(self, decoder: Decoder, batch: int, count: int) -> list[float]:
        """Milliseconds of each of `count` batches."""
        decoder.draw(self._prompts[:batch], list(range(batch)))
        times = []
        for number in range(count):
            start = perf_counter()
            decoder.draw(self._prompts[:batch], list(range(number, number + batch)))
            times.append(1000 * (perf_counter() - start))
        return times

    def part_loads(self) -> None:
        """Latency at parts of the capacity, with requests at random times."""
        capacity = float(np.median(self.rows[_SERVED_16].images_per_s))
        for share in _LOADED:
            samples = self.rows.setdefault(f"served, {share:.0%} of the capacity", Samples())
            seconds = self._amount.rounds * self._amount.seconds / 2
            samples.add(run_load(self._endpoint, _MODEL, rate=share * capacity, seconds=seconds, previews=False))

    def naive(self) -> None:
        """The raster decoder without a cache, in eager torch."""
        session = _EagerSequence(checkpoints.load("raster"))
        _, options, _ = AUTOREGRESSIVE[NAIVE]
        assert isinstance(options, NextTokenOptions)
        times = []
        for number in range(self._amount.naive_images):
            start = perf_counter()
            continue_tokens(session, self._prompts[:1], session.cells, options, [number], cache=False)
            times.append(1000 * (perf_counter() - start))
        self.rows[_EAGER] = Samples([times])

    def best_batch(self) -> dict[str, int]:
        """Threads and batch with which the best autoregressive decoder gives the most images a second."""
        threads, batch = max(self._batched, key=lambda key: np.median(self._batched[key]))
        return {"threads": threads, "batch": batch}

    def checks(self) -> list[Check]:
        best = self.best_batch()
        served, many = self.rows[_SERVED], self.rows[_SERVED_16]
        batched = np.array(self._batched[(best["threads"], best["batch"])])
        rate_16, rate_1 = np.array(many.images_per_s), np.array(served.images_per_s)
        overhead = served.medians() - self.rows[_IN_PROCESS].medians()
        naive = self.rows[_EAGER].quantile(0.5)
        previewed = self.rows[_PREVIEWED]
        first = np.concatenate(previewed.preview_ms)
        images = sum(map(len, served.image_ms))
        return [
            Check("first_preview_p95_ms", float(np.quantile(first, 0.95)), 8, 4, len(first), at_least=False),
            Check("image_p95_ms", served.quantile(0.95), 12, 6, images, at_least=False),
            Check("image_after_preview_p95_ms", previewed.quantile(0.95), 12, 6, len(first), at_least=False),
            _median("serving_overhead_p50_ms", overhead, 3, 1.2, at_least=False),
            _median("throughput_gain_16", rate_16 / rate_1, 1.8, 2.5),
            _median("images_per_s_16", rate_16, 400, 800),
            _median("stack_throughput_vs_best_ar", rate_16 / batched, 8, 40),
            _median("stack_latency_vs_best_ar", self.rows[_BEST].medians() / served.medians(), 8, 40),
            _median("stack_speedup_vs_naive", naive / served.medians(), 40, 400),
        ]


def _median(name: str, values: np.ndarray, bound: float, aim: float, *, at_least: bool = True) -> Check:
    """Over the rounds, with its interval."""
    interval = BOOTSTRAP.quantile([[float(value)] for value in values], 0.5)
    median = float(np.median(values))
    return Check(name, median, bound, aim, len(values), at_least=at_least, low=interval.low, high=interval.high)


class _EagerSequence:
    """A `NextTokenSession` on eager torch that computes every token from all before it."""

    def __init__(self, generator: TorchGenerator):
        self._generator, config = generator.eval(), generator.config
        self._text, self._start = config.text_length, config.visual_vocabulary
        self.cells = config.coarse_tokens

    @torch.inference_mode()
    def next_logits(self, ids: np.ndarray, past: None) -> tuple[np.ndarray, None]:
        text, cells = ids[:, : self._text], ids[:, self._text :]
        previous = np.concatenate([np.full((len(ids), 1), self._start), cells], 1)
        logits = self._generator.sequence_logits(torch.from_numpy(text.copy()), torch.from_numpy(previous))
        return logits[:, -1].numpy(), None

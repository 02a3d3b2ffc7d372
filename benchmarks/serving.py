"""What does the served model give: time to the first preview and to the image, images a second, and what Triton costs?

    emuflow bench serving --json FILE

The kept progressive checkpoint in INT8, packaged with the pipeline's default settings, behind the real Triton server on
this machine; the load comes from a process of its own, with another caption in every request. An image is asked for alone
where its own latency and throughput are meant, and with its preview where that one's is. Beside it, in turn in every round:
the same engine in process, and the best autoregressive decoder (next token + details, KV cache, fp32) in the fastest way of
many to run it: onnxruntime, a call for each token or one graph for the whole image, on one thread, on as many as there are
cores, or in a process for each core; torch, eager or compiled; 1 to 64 images at once.
Then the naive one (raster, no cache, fp32, eager torch, batch 1), and what a judge reads in the images of the stack and of
the best autoregressive decoder.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decode_rows import AUTOREGRESSIVE, BEST_AR, NAIVE
from benchmarks.image_quality import BOOTSTRAP, Questions
from benchmarks.load import Load, run_load
from benchmarks.report import Announcer, Check, Report, Row, command_line, family_cpu_s
from benchmarks.served_package import build
from benchmarks.serving_baseline import BATCHES, Baseline, open_ways
from benchmarks.serving_quality import drawn_correct, quality_check, served_correct
from components.export.settings import DecodingSettings, ExportSettings
from components.ingest.digit_world.scenes import all_captions
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.transformer.model import Generator as TorchGenerator
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request
from serving.server import TritonServer

_MODEL = "measured"
_CLIENTS = 16
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
    seeds: int = 8
    """Images of each caption, of the stack and of the best autoregressive decoder, that a judge reads."""
    captions: int | None = None
    """Held-out captions; None is all of them."""


@dataclass
class Samples:
    """What was measured of one row: a list for each round."""

    image_ms: list[list[float]] = field(default_factory=list)
    preview_ms: list[list[float]] = field(default_factory=list)
    images_per_s: list[float] = field(default_factory=list)
    correct: np.ndarray | None = None
    """Whether a judge read what was asked for, float64 [seeds, captions]; None where none looked."""

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
        accuracy = None
        if self.correct is not None:
            accuracy, more["judged"] = float(self.correct.mean()), self.correct.size
        return Row(name, self.quantile(0.5), self.quantile(0.95), accuracy, sum(map(len, self.image_ms)), more)


def run(cache: Path, console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, write `file`; whether every bound holds. `cache` keeps the judge between calls."""
    amount = amount or Amount()
    report = Report("serving", command_line(), columns=("images_per_s",))
    announce = Announcer(console)
    announce("the judge")
    judge = trained_judge(JudgeSettings(), cache).folder / GRAPH_NAME
    with ExitStack() as stack:
        work = Path(stack.enter_context(TemporaryDirectory(prefix="emuflow-serving-")))
        announce("packaging the model")
        settings = ExportSettings()
        package = build("progressive", "int8", DecodingSettings(), settings, work, work / "keys")
        announce("starting Triton")
        server = stack.enter_context(TritonServer(work / "server", work / "keys"))
        server.load(package, _MODEL, expected_digest=package.name)
        bench = Bench(server.grpc_endpoint, Generator(package / "1"), stack, amount)
        announce("the ways to run the best autoregressive decoder")
        bench.baseline.try_all()
        for number in range(amount.rounds):
            announce(f"round {number + 1} of {amount.rounds}")
            with report.timed(family_cpu_s):
                bench.round(number)
        announce("at a part of the capacity")
        with report.timed(family_cpu_s):
            bench.part_loads()
        announce("the naive decoder")
        with report.timed(family_cpu_s):
            bench.naive()
        announce("what the judge reads")
        bench.judge(judge)
        report.rows += [samples.row(name) for name, samples in bench.rows.items()]
        report.checks += bench.checks()
        report.rows += bench.tried_rows()
        report.notes |= {
            "export": settings.model_dump(mode="json"),
            "best_ar": asdict(bench.baseline.best()),
            "best_ar_tried": bench.baseline.describe(),
        }
    return report.finish(console, file)


class Bench:
    """The measurements of one run."""

    def __init__(self, endpoint: str, generator: Generator, stack: ExitStack, amount: Amount):
        self._endpoint, self._generator, self._amount = endpoint, generator, amount
        text_length = checkpoints.load("progressive").config.text_length
        tokenizer = checkpoints.load_tokenizers().text
        self._questions = Questions.of(tokenizer, text_length, amount.captions)
        self._prompts = Questions.of(tokenizer, text_length, max(BATCHES)).text_ids
        self.baseline = Baseline(open_ways(stack), self._prompts)
        self._captions = np.random.default_rng(0).permutation(all_captions()).tolist()
        names = (_IN_PROCESS, _SERVED, _SERVED_16, _PREVIEWED, _PREVIEWED_16, _AGAIN, _BEST)
        self.rows = {name: Samples() for name in names}

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
        self.baseline.round(self._amount.images)
        self.rows[_BEST].image_ms.append(self.baseline.latency_ms[-1])

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

    def judge(self, graph: Path) -> None:
        """What is right in the images that 16 at once are served, and in those of the best autoregressive decoder."""
        seeds, best = self._amount.seeds, self.rows[_BEST]
        best.images_per_s = self.baseline.images_per_s[self.baseline.best()]
        best.correct = drawn_correct(self.baseline.decoder(self.baseline.best()), self._questions, seeds, graph)
        self.rows[_SERVED_16].correct = served_correct(self._endpoint, _MODEL, self._questions, seeds, graph)

    def tried_rows(self) -> list[Row]:
        """The best autoregressive decoder with each engine of its cells, as it was tried before the rounds."""
        return [
            Row(f"{_BEST}, cells by {engine}, tried once", image_ms, more={"images_per_s": images_per_s})
            for engine, image_ms, images_per_s in self.baseline.by_engine()
        ]

    def checks(self) -> list[Check]:
        served, many = self.rows[_SERVED], self.rows[_SERVED_16]
        best = self.rows[_BEST]
        assert many.correct is not None and best.correct is not None, "the judge comes first"
        batched = np.array(best.images_per_s)
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
            quality_check(many.correct, best.correct),
        ]


def _median(name: str, values: np.ndarray, bound: float, aim: float, *, at_least: bool = True) -> Check:
    """Over the rounds, with its interval."""
    interval = BOOTSTRAP.quantile([[float(value)] for value in values], 0.5)
    median = float(np.median(values))
    return Check(name, median, bound, aim, len(values), at_least=at_least, low=interval.low, high=interval.high)


class _EagerSequence:
    """A `NextTokenSession` on eager torch that computes every token from all before it."""

    positions = None

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

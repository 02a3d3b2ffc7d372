"""The rows of `decoding_gpu`: an engine's ways to draw images, timed call by call."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoding_gpu_decoders import DeviceDecoder, NextCells
from benchmarks.decoding_gpu_int8 import with_int8_products
from benchmarks.decoding_gpu_shape import Work, next_token_work, progressive_work, without_encoder
from benchmarks.report import Row
from model.decoding.loop import DecodingOptions, generate
from model.parallel.plan.hardware import Gpu
from model.quantization.inference import with_plain_tables
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.session import TorchSession, compiled

Draw = Callable[[], Iterator[np.ndarray]]
"""Yields the pixels of each stage that is shown, the image's last: uint8 [batch, height, width, 3]."""


@dataclass
class Timed:
    """A way to draw a batch of images, and how long its calls took."""

    name: str
    batch: int
    draw: Draw
    work: Work
    weight_bytes: int
    reserved_bytes: int | None = None
    """What its warm-up reserved; None without a GPU."""
    seconds: list[float] = field(default_factory=list)
    first_preview_s: list[float] = field(default_factory=list)
    """Empty where the image is all that is shown."""

    def take(self) -> None:
        """Time one call."""
        _synchronise()
        begun, shown = perf_counter(), []
        for _ in self.draw():
            shown.append(perf_counter() - begun)  # pixels in the machine's memory have waited for the GPU
        _synchronise()
        self.seconds.append(perf_counter() - begun)
        if len(shown) > 1:
            self.first_preview_s.append(shown[0])

    def warm_up(self, calls: int) -> None:
        """Call it, and find what that reserves. Raises `torch.OutOfMemoryError` where that does not fit."""
        on_gpu, before = torch.cuda.is_available(), 0
        if on_gpu:
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_reserved()
        for _ in range(calls):
            self.take()
        self.seconds, self.first_preview_s = [], []
        if on_gpu:
            self.reserved_bytes = torch.cuda.max_memory_reserved() - before

    def row(self, gpu: Gpu | None, reference: "Timed | None") -> Row:
        """`times_slower` is the median over the rounds, against the time of `reference` in the same round."""
        seconds = np.array(self.seconds)
        median, p95 = float(np.median(seconds)), float(np.quantile(seconds, 0.95))
        reserved, preview = self.reserved_bytes, self.first_preview_s
        more = {
            "batch": self.batch,
            "images_per_s": self.batch / median,
            "times_slower": float(np.median(seconds / np.array(reference.seconds))) if reference else None,
            "first_preview_ms": 1000 * float(np.median(preview)) if preview else None,
            "first_preview_p95_ms": 1000 * float(np.quantile(preview, 0.95)) if preview else None,
            "rate_share": self.work.flops / median / gpu.bf16_flops if gpu else None,
            "bandwidth_share": self.work.moved / median / gpu.hbm_bytes_per_s if gpu else None,
            "memory_gib": None if reserved is None else (self.weight_bytes + reserved) / 2**30,
            "flops": self.work.flops,
            "bytes_moved": self.work.moved,
        }
        return Row(f"{self.name}, batch {self.batch}", 1000 * median, 1000 * p95, n=len(seconds), more=more)


@dataclass(frozen=True)
class Engine:
    """A session in bf16."""

    kind: str
    session: TorchSession
    visual: VisualTokenizerConfig
    compiled: bool

    def progressive(self, text_ids: Tensor, *, previews: bool = False) -> Timed:
        decoder = DeviceDecoder(self.session, DecodingOptions(previews=previews))
        work = progressive_work(self._config, self.visual, len(text_ids), previews=previews)
        name = f"progressive, previews, {self.kind}" if previews else f"progressive, {self.kind}"
        return self._timed(name, len(text_ids), partial(decoder.progressive, text_ids), work)

    def progressive_of_the_host(self, text_ids: Tensor) -> Timed:
        """By the loop of `model.decoding`, whose samplers are numpy."""
        ids, options = text_ids.cpu().numpy(), DecodingOptions(previews=False)
        seeds = list(range(len(ids)))

        def draw() -> Iterator[np.ndarray]:
            return (stage.pixels for stage in generate(self.session, ids, options, seeds))

        work = progressive_work(self._config, self.visual, len(ids), previews=False)
        return self._timed(f"progressive, drawn on the host, {self.kind}", len(ids), draw, work)

    def next_token(self, text_ids: Tensor) -> Timed:
        """Cell by cell with a KV cache, then each stage of details in one pass."""
        decoder = DeviceDecoder(self.session, DecodingOptions(previews=False))
        cells = NextCells(self.session.generator, len(text_ids), compiled=self.compiled)
        work = next_token_work(self._config, self.visual, len(text_ids))
        name = f"next token + details, KV cache, {self.kind}"
        return self._timed(name, len(text_ids), partial(decoder.next_token, cells, text_ids), work)

    @property
    def _config(self) -> GeneratorConfig:
        return self.session.generator.config

    def _timed(self, name: str, batch: int, draw: Draw, work: Work) -> Timed:
        generator = self.session.generator
        held = [*generator.parameters(), *generator.buffers()]
        return Timed(name, batch, draw, work, sum(tensor.nbytes for tensor in held))


def rows(
    config: GeneratorConfig, visual_shape: VisualTokenizerConfig, batches: tuple[int, ...], *, compile_too: bool
) -> Iterator[Timed]:
    """Every row, of each size of a batch in turn; the weights are random, and on the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator, visual = _models(config, visual_shape, device)
    engines = [Engine("eager", TorchSession(generator, visual), visual_shape, compiled=False)]
    if compile_too:
        engines.append(Engine("compiled", compiled(generator, visual), visual_shape, compiled=True))
    fastest, int8 = engines[-1], with_int8_products(generator)
    int8_session = compiled(int8, visual) if compile_too else TorchSession(int8, visual)
    int8_engine = Engine(f"INT8 products, {fastest.kind}", int8_session, visual_shape, compiled=compile_too)
    for batch in batches:
        text_ids = torch.randint(config.text_vocabulary, (batch, config.text_length), device=device)
        for engine in engines:
            yield engine.progressive(text_ids)
            if config.fine_layers:
                yield engine.progressive(text_ids, previews=True)
        yield int8_engine.progressive(text_ids)
        yield fastest.progressive_of_the_host(text_ids)
        for engine in engines:
            yield engine.next_token(text_ids)


def _models(
    config: GeneratorConfig, visual_shape: VisualTokenizerConfig, device: torch.device
) -> tuple[Generator, VisualTokenizer]:
    """Of random weights in bf16, with tables and heads as a package has them."""
    torch.manual_seed(0)
    with device:
        generator = without_encoder(Generator(config)).to(torch.bfloat16)
        visual = VisualTokenizer(visual_shape).to(torch.bfloat16)
        return with_plain_tables(generator).to(torch.bfloat16), visual.eval()


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()

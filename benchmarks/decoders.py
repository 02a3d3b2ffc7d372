"""The ways to draw an image that are compared: each on onnxruntime, with the same threads.

The graphs are exported from the checkpoints as the pipeline does it, and decoded by `model.decoding`: what is timed is
what is served, and the baselines run the same samplers on the same engine.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np

from benchmarks.next_token_graph import FILE, draw_next, fuse_next_tokens
from benchmarks.precision import export
from components.calibrate.engine import generator_description
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.decoding.loop import DecodingOptions, generate, grow
from model.decoding.session import Prefix
from model.quantization.inference import without_plan
from model.tokenizers.bundle import TokenizerBundle
from model.transformer.model import Generator
from serving.package.runtime.engine import EngineSession
from serving.package.runtime.providers import load_graph

Draw = Callable[[np.ndarray, list[int]], np.ndarray]
"""Prompts int64 [n, text_length] and a seed each -> images uint8 [n, height, width, 3]."""
_WARM_S = 0.03
_TIMED_S = 0.1


@dataclass(frozen=True)
class Decoder:
    """One row of the comparison."""

    name: str
    parameters: int
    draw: Draw

    def batch_ms(self, text_ids: np.ndarray, count: int, now: Callable[[], float] = perf_counter) -> list[float]:
        """Milliseconds of each of `count` calls with all prompts, int64 [batch, text_length], after one that is not counted;
        `now` gives seconds."""
        batch, times = len(text_ids), []
        self.draw(text_ids, list(range(batch)))
        for number in range(count):
            start = now()
            self.draw(text_ids, list(range(number, number + batch)))
            times.append(1000 * (now() - start))
        return times


def first_and_warm_ms(decoder: Decoder, prompt: np.ndarray, seed: int) -> tuple[float, list[float]]:
    """Milliseconds of one image: the first one after whatever else ran, and each of those of a moment, one at least, after a
    while of nothing but these.

    The while is the same for all. What a server's caches hold is the model that it serves; a decoder of few milliseconds
    would otherwise be measured by what the decoder before it left in them.
    """
    first_ms = _warm_up(decoder, prompt, seed)
    timed_until = perf_counter() + _TIMED_S
    times_ms = [_timed_ms(decoder, prompt, seed)]
    while perf_counter() < timed_until:
        times_ms.append(_timed_ms(decoder, prompt, seed))
    return first_ms, times_ms


def warm_ms(decoder: Decoder, prompts: np.ndarray, seed: int, calls: int) -> float:
    """Milliseconds of the images of `prompts` in one call, the median of some, after a while of nothing but such calls, and
    one at least."""
    _warm_up(decoder, prompts, seed)
    return float(np.median([_timed_ms(decoder, prompts, seed) for _ in range(calls)]))


def _warm_up(decoder: Decoder, prompts: np.ndarray, seed: int) -> float:
    """Nothing but these calls for a while, one at least; the milliseconds of the first one."""
    warm_at = perf_counter() + _WARM_S
    first_ms = _timed_ms(decoder, prompts, seed)
    while perf_counter() < warm_at:
        _timed_ms(decoder, prompts, seed)
    return first_ms


def _timed_ms(decoder: Decoder, prompts: np.ndarray, seed: int) -> float:
    seeds = list(range(seed, seed + len(prompts)))
    start = perf_counter()
    decoder.draw(prompts, seeds)
    return 1000 * (perf_counter() - start)


@dataclass(frozen=True)
class Engine:
    """A checkpoint's graphs in a folder."""

    folder: Path
    generator: Generator
    session: EngineSession
    threads: int
    says_nothing: np.ndarray
    """The unconditional prompt, for guidance: int64 [text_length]."""

    def parallel(self, name: str, options: DecodingOptions, *, at_once: bool = True) -> Decoder:
        """Every pass predicts all cells at once; coarse to fine where the model has details. No previews. What takes noise
        alone is one call, or without `at_once` a call for each of its graphs."""
        options = replace(options, previews=False)
        session = self.session
        if not at_once:
            session = copy.copy(session)
            session.draw_image = None

        def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
            *_, final = generate(session, text_ids, options, seeds, self.says_nothing)
            return final.pixels

        return Decoder(name, self.parameters, draw)

    def autoregressive(self, name: str, options: NextTokenOptions, *, cache: bool) -> Decoder:
        """One cell after another in raster order, then each stage of details in one pass."""
        cells = NextCellSession(self.folder, self.generator, self.session, cache=cache, threads=self.threads)
        rows, columns = self.session.coarse_grid
        details, stages = DecodingOptions(), self.session.detail_stages

        def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
            sketch = continue_tokens(cells, text_ids, rows * columns, options, seeds, cache=cache)
            if not stages:
                return self.session.decode_image(sketch.reshape(-1, rows, columns))
            # What the first cell was drawn from is what the details need, too: an image costs one reading of its prompt.
            prefix = cells.prefix if cells.prefix is not None else self.session.prefill(text_ids)
            *_, codes = grow(self.session, prefix, sketch, details, seeds, stages)
            return self.session.decode_image(codes)

        return Decoder(name, self.parameters, draw)

    def next_at_once(self, name: str, options: NextTokenOptions) -> Decoder:
        """`autoregressive` with a cache, all cells in one call. Its graph is made once, and lies beside those that it is made
        of."""
        config = self.generator.config
        if not (self.folder / FILE).exists():
            fuse_next_tokens(self.folder, config.grids, config.visual_vocabulary)
        graph = load_graph(self.folder / FILE, self.threads)

        def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
            return draw_next(graph, text_ids, seeds, options, config.coarse_tokens, config.visual_vocabulary)

        return Decoder(name, self.parameters, draw)

    @property
    def parameters(self) -> int:
        """Weights that decoding uses: the plan's encoder serves training alone."""
        plan = self.generator.plan
        unused = 0 if plan is None else sum(parameter.numel() for parameter in plan.encoder.parameters())
        return sum(parameter.numel() for parameter in self.generator.parameters()) - unused


class NextCellSession:
    """The next cell of an image's grid on onnxruntime; see `model.decoding.autoregressive.NextTokenSession`.

    A sequence is the prompt's `text_length` ids, then the cells so far in their own vocabulary. With a cache `session`
    reads the prompts.
    """

    positions = None
    prefix: Prefix | None = None
    """Of the prompts that were read last; without a cache none is kept."""

    def __init__(self, folder: Path, generator: Generator, session: EngineSession, *, cache: bool, threads: int):
        self._text, self._start = generator.config.text_length, generator.config.visual_vocabulary
        self._session, self._cache = session, cache
        self._graph = load_graph(folder / ("next.onnx" if cache else "sequence.onnx"), threads)

    def next_logits(self, ids: np.ndarray, past: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        if not self._cache:
            text, cells = ids[:, : self._text], ids[:, self._text :]
            previous = np.concatenate([np.full((len(ids), 1), self._start, dtype=np.int64), cells], 1)
            feeds = {"text_ids": np.ascontiguousarray(text), "previous_ids": previous}
            return np.asarray(self._graph.run(["logits"], feeds)[0]), None
        if past is None:
            self.prefix = self._session.prefill(ids)
            past, ids = self.prefix[0], np.full((len(ids), 1), self._start, dtype=np.int64)
        first = np.array([past.shape[-2] - self._text])
        logits, present = self._graph.run(["logits", "present"], {"past": past, "previous_ids": ids, "first": first})
        return np.asarray(logits), np.asarray(present)


@contextmanager
def engine(generator: Generator, tokenizers: TokenizerBundle, *, next_token: bool, threads: int) -> Iterator[Engine]:
    """Export the graphs in fp32 that the decoders of a checkpoint need, for as long as the block lasts."""
    with TemporaryDirectory(prefix="emuflow-bench-") as temporary:
        folder = Path(temporary) / "graphs"
        export_engine(folder, generator, tokenizers, next_token=next_token)
        yield open_engine(folder, generator, tokenizers, next_token=next_token, threads=threads)


def export_engine(
    folder: Path,
    generator: Generator,
    tokenizers: TokenizerBundle,
    *,
    next_token: bool,
    prompts: Sequence[np.ndarray] = (),
) -> None:
    """Write the graphs that the decoders of a checkpoint need to a folder that this makes: in INT8 where there are `prompts`
    to calibrate with, as `precision.export` takes them.

    Next-token decoders have no plan, and are exported without it.
    """
    folder.mkdir()
    drawn = without_plan(generator) if next_token else generator
    export(drawn, tokenizers.visual, folder, next_token=next_token, prompts=prompts)


def open_engine(
    folder: Path, generator: Generator, tokenizers: TokenizerBundle, *, next_token: bool, threads: int
) -> Engine:
    """What `export_engine` wrote, loaded."""
    generator = without_plan(generator) if next_token else generator
    session = EngineSession(folder, generator_description(generator.config, tokenizers), threads=threads)
    says_nothing = np.array(tokenizers.text.unconditional_prompt(generator.config.text_length))
    return Engine(folder, generator, session, threads, says_nothing)

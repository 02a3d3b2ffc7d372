"""The decoders that `benchmarks.decode` compares, by the names of their rows.

The temperatures were chosen with `python -m benchmarks.tune_decode`: ours on other captions than those that are measured,
the baselines' so that they are as accurate as ours on the measured captions under other seeds, which no speed depends on.
"""

import os
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks import checkpoints
from benchmarks.decoders import Decoder, Engine, export_engine, open_engine
from benchmarks.image_quality import Questions
from benchmarks.precision import Precision
from components.calibrate.settings import CalibrationSettings
from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import DecodingOptions
from model.tokenizers.bundle import TokenizerBundle
from model.transformer.model import Generator

OURS, OURS_INT8, VARIED, GREEDY, ADAPTED, REDRAWN, GUIDED, THREE_GRIDS = (
    "progressive",
    "progressive, INT8",
    "progressive, varied",
    "progressive, one step, greedy",
    "progressive, adapted",
    "progressive, redrawn where unsure",
    "progressive, guided",
    "progressive, three grids",
)
BEST_AR, BEST_AR_INT8, BEST_AR_VARIED, RASTER, NAIVE = (
    "next token + details, KV cache",
    "next token + details, KV cache, INT8",
    "next token + details, varied",
    "next token, raster, KV cache",
    "next token, raster, no cache (naive)",
)
_ONE_SCALE_TEMPERATURES = {1: 0.56, 2: 0.6, 4: 0.53, 8: 0.6}
"""By the number of steps: such that as few as possible keep our accuracy and the next tokens' variety. Eight are as accurate
as ours at no temperature: at this one as accurate as they get."""
ONE_SCALE = {steps: f"one scale, {steps} parallel steps" for steps in _ONE_SCALE_TEMPERATURES}
ONE_GRAPH = {
    "next token + details, one graph": BEST_AR,
    "next token + details, one graph, INT8": BEST_AR_INT8,
    "one scale, 1 parallel steps, one graph": ONE_SCALE[1],
}
"""A baseline in one call for an image, as ours is: whichever of the two is faster is what ours is compared with. Several
parallel steps look at what they drew, and cannot be one."""
SAME_IMAGES = {NAIVE: RASTER, **ONE_GRAPH}
"""Decoders that compute, in another way, what another one does."""
PARALLEL = {
    OURS: ("progressive", DecodingOptions(temperature=0.4, plan_temperature=0.9)),
    OURS_INT8: ("progressive, int8", DecodingOptions(temperature=0.4, plan_temperature=0.9)),
    VARIED: ("progressive", DecodingOptions(temperature=1.0, plan_temperature=1.25)),
    GREEDY: ("progressive", DecodingOptions(temperature=0.0, plan_temperature=0.0)),
    REDRAWN: ("progressive", DecodingOptions(temperature=0.8, plan_temperature=0.9, redraw_below=0.1)),
    GUIDED: ("guided", DecodingOptions(temperature=0.4, plan_temperature=0.9, guidance=3.0)),
    THREE_GRIDS: ("three-grids", DecodingOptions(temperature=0.4, plan_temperature=0.7)),
    ADAPTED: ("adapted", DecodingOptions(temperature=0.3, plan_temperature=0.8)),
    **{
        ONE_SCALE[steps]: ("one-scale", DecodingOptions(coarse_steps=steps, temperature=temperature))
        for steps, temperature in _ONE_SCALE_TEMPERATURES.items()
    },
}
"""Engine and settings of each parallel decoder."""
AUTOREGRESSIVE = {
    BEST_AR: ("next-token", NextTokenOptions(temperature=0.47), True),
    BEST_AR_INT8: ("next-token, int8", NextTokenOptions(temperature=0.45), True),
    BEST_AR_VARIED: ("next-token", NextTokenOptions(temperature=0.91), True),
    RASTER: ("raster", NextTokenOptions(temperature=0.39), True),
    NAIVE: ("raster", NextTokenOptions(temperature=0.39), False),
}
"""Engine, settings and whether keys and values are kept, of each autoregressive decoder."""
ENGINES: dict[str, tuple[str, Precision]] = {
    **{
        name: (name, "fp32")
        for name in ("progressive", "next-token", "adapted", "guided", "three-grids", "raster", "one-scale")
    },
    "progressive, int8": ("progressive", "int8"),
    "next-token, int8": ("next-token", "int8"),
}
"""Checkpoint and precision of each engine."""
_CALIBRATED = CalibrationSettings()


def open_engines(stack: ExitStack, names: Iterable[str] = tuple(ENGINES), threads: int = 1) -> dict[str, Engine]:
    """The graphs of the named engines, until `stack` closes. They are exported by as many processes as there are cores: it
    takes most of a minute each, and one core."""
    names, tokenizers = tuple(names), checkpoints.load_tokenizers()
    parent = Path(stack.enter_context(TemporaryDirectory(prefix="emuflow-bench-")))
    folders = {name: parent / name for name in names}
    workers = min(len(names), len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(_export, names, folders.values()))
    return {
        name: open_engine(folder, generator, tokenizers, next_token=one_by_one, threads=threads)
        for name, folder in folders.items()
        for generator, one_by_one in [_checkpoint(name)]
    }


def _export(name: str, folder: Path) -> None:
    tokenizers, (generator, one_by_one) = checkpoints.load_tokenizers(), _checkpoint(name)
    is_int8 = ENGINES[name][1] == "int8"
    prompts = calibration_prompts(tokenizers, generator.config.text_length) if is_int8 else ()
    export_engine(folder, generator, tokenizers, next_token=one_by_one, prompts=prompts)


def _checkpoint(name: str) -> tuple[Generator, bool]:
    """An engine's generator, and whether it draws one token after another."""
    checkpoint, _ = ENGINES[name]
    return checkpoints.load(checkpoint), checkpoints.RECIPES[checkpoint].objective == "next_token"


def calibration_prompts(tokenizers: TokenizerBundle, text_length: int) -> list[np.ndarray]:
    """As many captions as the pipeline calibrates with, none of them held out: batches int64 [n, text_length]."""
    questions = Questions.of(tokenizers.text, text_length, _CALIBRATED.prompts, held_out=False)
    return np.split(questions.text_ids, range(_CALIBRATED.batch_size, _CALIBRATED.prompts, _CALIBRATED.batch_size))


def open_decoders(engines: dict[str, Engine]) -> dict[str, Decoder]:
    """Every row's decoder, by name."""
    in_calls = set(ONE_GRAPH.values())
    parallel = {
        name: engines[kept].parallel(name, options, at_once=name not in in_calls)
        for name, (kept, options) in PARALLEL.items()
    }
    one_by_one = {
        name: engines[kept].autoregressive(name, options, cache=cache)
        for name, (kept, options, cache) in AUTOREGRESSIVE.items()
    }
    return parallel | one_by_one | {name: _at_once(engines, name, calls) for name, calls in ONE_GRAPH.items()}


def _at_once(engines: dict[str, Engine], name: str, calls: str) -> Decoder:
    if calls in PARALLEL:
        kept, options = PARALLEL[calls]
        return engines[kept].parallel(name, options)
    kept, options, _ = AUTOREGRESSIVE[calls]
    return engines[kept].next_at_once(name, options)

"""The decoders that `benchmarks.decode` compares, by the names of their rows.

The temperatures were chosen with `python -m benchmarks.tune_decode`: ours on other captions than those that are measured,
the baselines' so that they are as accurate as ours on the measured captions under other seeds, which no speed depends on.
"""

from collections.abc import Iterable
from contextlib import ExitStack

import numpy as np

from benchmarks import checkpoints
from benchmarks.decoders import Decoder, Engine, engine
from benchmarks.image_quality import Questions
from benchmarks.precision import Precision
from components.calibrate.settings import CalibrationSettings
from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import DecodingOptions
from model.tokenizers.bundle import TokenizerBundle

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
ONE_SCALE = {steps: f"one scale, {steps} parallel steps" for steps in (1, 2, 4, 8, 16)}
PARALLEL = {
    OURS: ("progressive", DecodingOptions(temperature=0.4, plan_temperature=0.9)),
    OURS_INT8: ("progressive, int8", DecodingOptions(temperature=0.4, plan_temperature=0.9)),
    VARIED: ("progressive", DecodingOptions(temperature=1.0, plan_temperature=1.3)),
    GREEDY: ("progressive", DecodingOptions(temperature=0.0, plan_temperature=0.0)),
    REDRAWN: ("progressive", DecodingOptions(temperature=0.8, plan_temperature=0.9, redraw_below=0.1)),
    GUIDED: ("guided", DecodingOptions(temperature=0.4, plan_temperature=0.9, guidance=3.0)),
    THREE_GRIDS: ("three-grids", DecodingOptions(temperature=0.4, plan_temperature=0.7)),
    ADAPTED: ("adapted", DecodingOptions(temperature=0.3, plan_temperature=0.8)),
    **{name: ("one-scale", DecodingOptions(coarse_steps=steps, temperature=0.7)) for steps, name in ONE_SCALE.items()},
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
    """The graphs of the named engines, until `stack` closes."""
    tokenizers, engines = checkpoints.load_tokenizers(), {}
    for name in names:
        checkpoint, precision = ENGINES[name]
        generator = checkpoints.load(checkpoint)
        one_by_one = checkpoints.RECIPES[checkpoint].objective == "next_token"
        prompts = calibration_prompts(tokenizers, generator.config.text_length) if precision == "int8" else ()
        context = engine(generator, tokenizers, next_token=one_by_one, threads=threads, prompts=prompts)
        engines[name] = stack.enter_context(context)
    return engines


def calibration_prompts(tokenizers: TokenizerBundle, text_length: int) -> list[np.ndarray]:
    """As many captions as the pipeline calibrates with, none of them held out: batches int64 [n, text_length]."""
    questions = Questions.of(tokenizers.text, text_length, _CALIBRATED.prompts, held_out=False)
    return np.split(questions.text_ids, range(_CALIBRATED.batch_size, _CALIBRATED.prompts, _CALIBRATED.batch_size))


def open_decoders(engines: dict[str, Engine]) -> dict[str, Decoder]:
    """Every row's decoder, by name."""
    parallel = {name: engines[kept].parallel(name, options) for name, (kept, options) in PARALLEL.items()}
    one_by_one = {
        name: engines[kept].autoregressive(name, options, cache=cache)
        for name, (kept, options, cache) in AUTOREGRESSIVE.items()
    }
    return parallel | one_by_one

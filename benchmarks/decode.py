"""How much faster is a coarse-to-fine image, at the quality and variety of the fastest autoregressive one?

    emuflow bench decode --json FILE

Every decoder runs on onnxruntime, on one thread, in this process; the headline is about INT8, which is what packages serve
and the fastest of either, and the other decoders are compared in fp32. Quality is measured first, on held-out captions
that all decoders answer with the same seeds; then all are timed in turn, one image each a round. One-scale decoding is
given more steps until it is as good as ours, and no more after that.
"""

from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decode_plot import Shown, plot
from benchmarks.decode_rows import (
    ADAPTED,
    BEST_AR,
    BEST_AR_INT8,
    BEST_AR_VARIED,
    NAIVE,
    ONE_SCALE,
    OURS,
    OURS_INT8,
    RASTER,
    VARIED,
    open_decoders,
    open_engines,
)
from benchmarks.decoders import Decoder
from benchmarks.image_quality import BOOTSTRAP, Gaussian, Questions, paired_difference, variety
from benchmarks.report import Announcer, Check, Report, Row, command_line
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge

_BATCH = 32
_SHOWN = 8
"""Captions whose images are in the picture."""
_EQUAL = 0.01
"""Two rows are of equal quality where the 95% interval of their difference in accuracy lies within this."""
_VARIETY_KEPT = 0.9
_QUALITY_KEPT = 0.987
_SAME_PIXELS = 0.98
_WARM_S = 0.03
"""A decoder draws untimed images for as long before one is timed."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    rounds: int = 25
    """Timed images of each decoder."""
    seeds: int = 12
    """Images of each caption."""
    one_scale_seeds: int = 5
    """The same of the one-scale decoders, which take most of the time."""
    frechet_images: int = 5000
    captions: int | None = None
    """Held-out captions; None is all of them."""
    first_seed: int = 0
    """Of the images' seeds, which count up from here."""


@dataclass
class Measured:
    """A decoder with what was found of it."""

    decoder: Decoder
    correct: np.ndarray
    """float64 [seeds, captions]."""
    variety: float
    """Relative to real scenes."""
    frechet: float
    examples: np.ndarray
    """uint8 [captions, height, width, 3]: the first seed's images of a few captions."""
    first_batch: np.ndarray
    """uint8 [n, height, width, 3]: the first seed's images of the first captions."""
    times_ms: list[float] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    """Of the first image after other decoders', which have taken the processor's caches."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def run(cache: Path, console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file` with a picture beside it; whether every bound holds. `cache` keeps the judge between
    calls."""
    amount = amount or Amount()
    report = Report("decode", command_line(), columns=("variety", "frechet"))
    announce = Announcer(console)
    announce("the judge")
    judge = trained_judge(JudgeSettings(), cache).folder / GRAPH_NAME
    with ExitStack() as stack:
        announce("exporting the graphs")
        engines = open_engines(stack)
        decoders = open_decoders(engines)
        questions = Questions.of(
            checkpoints.load_tokenizers().text, engines["progressive"].generator.config.text_length, amount.captions
        )
        bench = Bench(questions, judge, amount)
        for number, (name, decoder) in enumerate(decoders.items()):
            if name in ONE_SCALE.values() and bench.equal_one_scale():
                continue
            announce(f"quality, {number + 1} of {len(decoders)}: {name}")
            bench.measure(name, decoder)
        announce("the best autoregressive decoder with other seeds")
        spread = bench.frechet_spread(decoders[BEST_AR_INT8])
        announce(f"timing {amount.rounds} rounds")
        bench.time()
        bench.fill(report, spread)
        if file is not None:
            bench.picture(file.with_suffix(".png"))
    return report.finish(console, file)


class Bench:
    """The measurements of one run."""

    def __init__(self, questions: Questions, judge: Path, amount: Amount):
        self.questions, self.judge, self.amount = questions, judge, amount
        self.rows: dict[str, Measured] = {}
        self.shown = np.linspace(0, len(questions.scenes) - 1, _SHOWN).round().astype(int)
        real = questions.real(amount.seeds)
        self.real_variety = variety(real, len(questions.scenes))
        self.real = Gaussian.of(judge, real[: amount.frechet_images])

    def draw(self, decoder: Decoder, series: int = 0) -> np.ndarray:
        """All images of a decoder, seed by seed: uint8 [seeds * captions, height, width, 3]. Each series has other seeds."""
        one_scale = decoder.name in ONE_SCALE.values()
        prompts = self.questions.prompts(self.amount.one_scale_seeds if one_scale else self.amount.seeds)
        first_seed = self.amount.first_seed + series * len(prompts)
        seeds = list(range(first_seed, first_seed + len(prompts)))
        batches = range(0, len(prompts), _BATCH)
        return np.concatenate([decoder.draw(prompts[i : i + _BATCH], seeds[i : i + _BATCH]) for i in batches])

    def measure(self, name: str, decoder: Decoder) -> None:
        """Accuracy, variety and Fréchet distance.

        The naive decoder takes minutes for what the one with a cache draws in seconds. It draws one batch; where that
        is the cached one's, pixel for pixel but for rounding, the cached one's other images stand for its own.
        """
        captions = len(self.questions.scenes)
        if name == NAIVE:
            cached = self.rows[RASTER]
            images = decoder.draw(self.questions.text_ids[:_BATCH], list(range(min(_BATCH, captions))))
            same = float((images == cached.first_batch).mean())
            if same < _SAME_PIXELS:
                raise ValueError(f"without a cache only {same:.1%} of the pixels are those with it")
            self.rows[name] = replace(cached, decoder=decoder, times_ms=[], first_ms=[])
            return
        images = self.draw(decoder)
        self.rows[name] = Measured(
            decoder,
            self.questions.correct(self.judge, images),
            variety(images, captions) / self.real_variety,
            self.frechet(images),
            images[self.shown],
            images[: min(_BATCH, captions)],
        )

    def frechet(self, images: np.ndarray) -> float:
        return Gaussian.of(self.judge, images[: self.amount.frechet_images]).distance(self.real)

    def frechet_spread(self, decoder: Decoder) -> float:
        """Largest minus smallest Fréchet distance of one decoder under three series of seeds."""
        others = [self.frechet(self.draw(decoder, series)) for series in (1, 2)]
        distances = [self.rows[decoder.name].frechet, *others]
        return max(distances) - min(distances)

    def time(self) -> None:
        """One image of each decoder a round, in an order that turns round each time; the first round is not counted.

        Each is timed after a while of nothing but its own images, the same while for all: what a server's caches hold
        is the model that it serves. Its first image after the other decoders' is kept, too (`first_ms`).
        """
        names = list(self.rows)
        for number in range(self.amount.rounds + 1):
            prompt = self.questions.text_ids[number % len(self.questions.text_ids)][None]
            for name in names if number % 2 else reversed(names):
                row = self.rows[name]
                warm, first = perf_counter() + _WARM_S, _timed_ms(row.decoder, prompt, number)
                while perf_counter() < warm:
                    row.decoder.draw(prompt, [number])
                if number:
                    row.first_ms.append(first)
                    row.times_ms.append(_timed_ms(row.decoder, prompt, number))

    def fill(self, report: Report, spread: float) -> None:
        """Rows and checks of what was measured."""
        ours = self.rows[OURS]
        for name, row in self.rows.items():
            difference, interval = paired_difference(row.correct, ours.correct)
            report.rows.append(
                Row(
                    name,
                    float(np.median(row.times_ms)),
                    float(np.quantile(row.times_ms, 0.95)),
                    row.accuracy,
                    row.correct.size,
                    {
                        "variety": row.variety,
                        "frechet": row.frechet,
                        "accuracy_minus_ours": difference,
                        "low": interval.low,
                        "high": interval.high,
                        "parameters": row.decoder.parameters,
                        "first_median_ms": float(np.median(row.first_ms)),
                    },
                )
            )
        report.checks += [*self.speed_checks(), *self.quality_checks(spread)]
        report.notes["one_scale_of_equal_quality"] = self.equal_one_scale()
        report.notes["real_scenes"] = {"variety_pixels": self.real_variety, "frechet_spread_of_seeds": spread}

    def picture(self, file: Path) -> None:
        rows = {
            name: Shown(float(np.median(row.times_ms)), row.accuracy, row.variety, row.examples)
            for name, row in self.rows.items()
        }
        plot(rows, [self.questions.scenes[caption].caption for caption in self.shown], file)

    def speedup(
        self, name: str, bound: float | None, aim: float, check: str, ours: str = OURS, *, first: bool = False
    ) -> Check:
        """Median over the rounds of the other decoder's time over ours, with its interval; `first`: of first images."""
        times = [self.rows[row].first_ms if first else self.rows[row].times_ms for row in (name, ours)]
        pairs = zip(*times, strict=True)
        ratios = [theirs / own for theirs, own in pairs]
        interval = BOOTSTRAP.quantile([[ratio] for ratio in ratios], 0.5)
        return Check(check, float(np.median(ratios)), bound, aim, len(ratios), low=interval.low, high=interval.high)

    def speed_checks(self) -> list[Check]:
        measured = [name for name in ONE_SCALE.values() if name in self.rows]
        # Where none is as good as ours, the one that comes closest: the factor at equal quality is larger.
        one_scale = self.equal_one_scale() or max(measured, key=lambda name: self.rows[name].accuracy)
        return [
            self.speedup(BEST_AR_INT8, 5, 20, "speedup_vs_best_ar", OURS_INT8),
            self.speedup(BEST_AR, None, 20, "speedup_vs_best_ar_fp32"),
            self.speedup(BEST_AR_INT8, None, 20, "speedup_vs_best_ar_first_image", OURS_INT8, first=True),
            self.speedup(RASTER, 15, 40, "speedup_vs_ar_cached"),
            self.speedup(NAIVE, 20, 200, "speedup_vs_ar"),
            self.speedup(one_scale, 4, 8, "speedup_vs_one_scale"),
        ]

    def equal_one_scale(self) -> str | None:
        """Of the one-scale decoders that were measured, the one with the fewest steps that is not shown to be less
        accurate than ours by more than a point, nor less varied; None where there is none."""
        ours = self.rows[OURS]
        for name in (name for name in ONE_SCALE.values() if name in self.rows):
            _, interval = paired_difference(self.rows[name].correct, ours.correct)
            if interval.high >= -_EQUAL and self.rows[name].variety >= _VARIETY_KEPT * ours.variety:
                return name
        return None

    def quality_checks(self, spread: float) -> list[Check]:
        ours, best, adapted = self.rows[OURS_INT8], self.rows[BEST_AR_INT8], self.rows[ADAPTED]
        n = ours.correct.size
        kept = ours.accuracy / best.accuracy
        varied, best_varied = self.rows[VARIED], self.rows[BEST_AR_VARIED]
        adapted_keeps = adapted.accuracy / self.rows[OURS].accuracy
        steps = checkpoints.describe("adapted")["steps"] / checkpoints.describe("progressive")["steps"]
        return [
            Check("quality_kept_accuracy", kept, _QUALITY_KEPT, 1.0, n),
            self.equality(BEST_AR_INT8, "equal_quality_best_ar", OURS_INT8),
            self.equality(BEST_AR, "equal_quality_best_ar_fp32"),
            self.equality(OURS_INT8, "equal_quality_int8"),
            self.equality(RASTER, "equal_quality_raster_ar"),
            Check(
                "frechet_excess_in_seed_spreads",
                (ours.frechet - best.frechet) / spread,
                1,
                0,
                self.amount.frechet_images,
                at_least=False,
            ),
            Check("variety_kept", ours.variety / best.variety, _VARIETY_KEPT, 1.0, n),
            Check("accuracy_where_varied", min(varied.accuracy, best_varied.accuracy), 0.9, 0.9, n),
            Check("variety_vs_best_ar", varied.variety / best_varied.variety, 0.9, 1.1, n),
            Check("variety_vs_real", varied.variety, None, 0.9, n),
            Check("adapted_quality_kept", adapted_keeps, _QUALITY_KEPT, 1.0, n),
            # Steps that do not keep the quality buy nothing, however few they are: all of the training is still to pay.
            Check("adapt_cost_share", steps if adapted_keeps >= _QUALITY_KEPT else 1.0, 0.3, 0.1, n, at_least=False),
        ]

    def equality(self, name: str, check: str, ours: str = OURS) -> Check:
        """How far the interval of the difference to ours reaches from zero, in points of accuracy."""
        _, interval = paired_difference(self.rows[name].correct, self.rows[ours].correct)
        reach = 100 * max(abs(interval.low), abs(interval.high))
        return Check(check, reach, 100 * _EQUAL, 100 * _EQUAL, self.rows[name].correct.size, at_least=False)


def _timed_ms(decoder: Decoder, prompt: np.ndarray, seed: int) -> float:
    start = perf_counter()
    decoder.draw(prompt, [seed])
    return 1000 * (perf_counter() - start)

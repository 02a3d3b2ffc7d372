"""How much faster is a coarse-to-fine image, at the quality and variety of the fastest autoregressive one?

    emuflow bench decode --json FILE

Every decoder runs on onnxruntime, on one thread, in this process; the headline is about INT8, which is what packages serve,
and the other decoders are compared in fp32. INT8 need not be what next tokens are fastest in:
`speedup_vs_best_ar_any_precision` compares both in the precision that each is fastest in. Quality is measured first, on
held-out captions that all decoders answer with the same seeds; then all are timed in turn, some images each a round.
"""

from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decode_checks import Measured, compared_one_scale, quality_checks, speed_checks
from benchmarks.decode_plot import Shown, plot
from benchmarks.decode_rows import BEST_AR_INT8, ONE_SCALE, OURS, OURS_INT8, SAME_IMAGES, open_decoders, open_engines
from benchmarks.decoders import Decoder, first_and_warm_ms
from benchmarks.image_quality import Questions, paired_difference, seen_by, variety
from benchmarks.report import Announcer, Report, Row, command_line
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge

_BATCH = 32
_SHOWN = 8
"""Captions whose images are in the picture."""
_SAME_PIXELS = 0.98


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    rounds: int = 25
    """Times that each decoder is timed."""
    seeds: int = 12
    """Images of each caption."""
    headline_seeds: int = 24
    """The same of the two decoders that the headline compares: with 12 the interval of their difference reaches half a
    point to each side, and another judge's reading decides whether it leaves the point that is called equal."""
    one_scale_seeds: int = 7
    """The same of the one-scale decoders, which take most of the time: as few as make `frechet_images`."""
    frechet_images: int = 5000
    """Of each decoder, and real ones; fewer where one draws fewer: a distance falls with the number of images alone."""
    captions: int | None = None
    """Held-out captions; None is all of them."""
    first_seed: int = 0
    """Of the images' seeds, which count up from here."""


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
            announce(f"quality, {number + 1} of {len(decoders)}: {name}")
            bench.measure(name, decoder)
        announce("the best autoregressive decoder with other seeds")
        spread = bench.frechet_spread(decoders[BEST_AR_INT8])
        announce(f"timing {amount.rounds} rounds")
        with report.timed():
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
        fewest = min(amount.seeds, amount.one_scale_seeds)
        self.frechet_images = min(amount.frechet_images, fewest * len(questions.scenes))
        self.real = seen_by(judge, real[: self.frechet_images])

    def draw(self, decoder: Decoder, series: int = 0, count: int | None = None) -> np.ndarray:
        """A decoder's images, seed by seed: uint8 [seeds * captions, height, width, 3], or the first `count` of them. Each
        series has other seeds."""
        prompts = self.questions.prompts(self.seeds(decoder.name))
        first_seed = self.amount.first_seed + series * len(prompts)
        seeds = list(range(first_seed, first_seed + len(prompts)))
        prompts, seeds = prompts[:count], seeds[:count]
        batches = range(0, len(prompts), _BATCH)
        return np.concatenate([decoder.draw(prompts[i : i + _BATCH], seeds[i : i + _BATCH]) for i in batches])

    def seeds(self, name: str) -> int:
        """How many images of each caption a decoder draws."""
        if name in (OURS_INT8, BEST_AR_INT8):
            return max(self.amount.headline_seeds, self.amount.seeds)
        return self.amount.one_scale_seeds if name in ONE_SCALE.values() else self.amount.seeds

    def measure(self, name: str, decoder: Decoder) -> None:
        """Accuracy, variety and Fréchet distance.

        Where a decoder computes in another way what another one does, it draws one batch (the naive one takes minutes for
        what the one with a cache draws in seconds): is that the other's, pixel for pixel but for rounding, the other's
        images stand for its own.
        """
        captions = len(self.questions.scenes)
        if name in SAME_IMAGES:
            other = self.rows[SAME_IMAGES[name]]
            images = decoder.draw(self.questions.text_ids[:_BATCH], list(range(min(_BATCH, captions))))
            same = float((images == other.first_batch).mean())
            if same < _SAME_PIXELS:
                raise ValueError(f"{name}: only {same:.1%} of the pixels are those of {SAME_IMAGES[name]}")
            self.rows[name] = replace(other, decoder=decoder, times_ms=[], first_ms=[], image_ms=[])
            return
        images = self.draw(decoder)
        self.rows[name] = Measured(
            decoder,
            self.questions.correct(self.judge, images),
            variety(images[: self.amount.seeds * captions], captions) / self.real_variety,
            self.frechet(images),
            images[self.shown],
            images[: min(_BATCH, captions)],
        )

    def frechet(self, images: np.ndarray) -> float:
        """Of the first `frechet_images` images: of as many and of the same captions for every decoder."""
        return seen_by(self.judge, images[: self.frechet_images]).distance(self.real)

    def frechet_spread(self, decoder: Decoder) -> float:
        """Largest minus smallest Fréchet distance of one decoder under three series of seeds."""
        others = [self.frechet(self.draw(decoder, series, self.frechet_images)) for series in (1, 2)]
        distances = [self.rows[decoder.name].frechet, *others]
        return max(distances) - min(distances)

    def time(self) -> None:
        """Each decoder in turn, in an order that turns round each time; the first round is not counted.

        Each is timed after a while of nothing but its own images, the same while for all: what a server's caches hold
        is the model that it serves. A round's time is the median of as many images as fit a moment, one at least. Its
        first image after the other decoders' is kept, too (`first_ms`).
        """
        names = list(self.rows)
        for number in range(self.amount.rounds + 1):
            prompt = self.questions.text_ids[number % len(self.questions.text_ids)][None]
            for name in names if number % 2 else reversed(names):
                row = self.rows[name]
                first_ms, each_ms = first_and_warm_ms(row.decoder, prompt, number)
                if number:
                    row.first_ms.append(first_ms)
                    row.times_ms.append(float(np.median(each_ms)))
                    row.image_ms += each_ms

    def fill(self, report: Report, spread: float) -> None:
        """Rows and checks of what was measured."""
        ours = self.rows[OURS]
        for name, row in self.rows.items():
            difference, interval = paired_difference(row.correct, ours.correct)
            report.rows.append(
                Row(
                    name,
                    float(np.median(row.times_ms)),
                    float(np.quantile(row.image_ms, 0.95)),
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
        report.checks += [*speed_checks(self.rows), *quality_checks(self.rows, spread, self.frechet_images)]
        report.notes["one_scale_compared"] = compared_one_scale(self.rows).describe()
        report.notes["real_scenes"] = {"variety_pixels": self.real_variety, "frechet_spread_of_seeds": spread}
        report.notes["frechet_images"] = self.frechet_images

    def picture(self, file: Path) -> None:
        rows = {
            name: Shown(float(np.median(row.times_ms)), row.accuracy, row.variety, row.examples)
            for name, row in self.rows.items()
        }
        plot(rows, [self.questions.scenes[caption].caption for caption in self.shown], file)

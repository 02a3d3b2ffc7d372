"""What `benchmarks.decode` promises, from what it measured: speed at equal quality, quality kept, variety, cost.

Pure functions of the measured rows, by the rows' names. Where a baseline can be computed in several ways, ours is compared
with the fastest of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from benchmarks import checkpoints
from benchmarks.decode_rows import (
    ADAPTED,
    BEST_AR,
    BEST_AR_INT8,
    BEST_AR_VARIED,
    NAIVE,
    ONE_GRAPH,
    ONE_SCALE,
    OURS,
    OURS_INT8,
    RASTER,
    VARIED,
)
from benchmarks.decoders import Decoder
from benchmarks.image_quality import BOOTSTRAP, paired_difference
from benchmarks.report import Check

_EQUAL = 0.01
"""Two rows are of equal quality where the 95% interval of their difference in accuracy lies within this."""
_VARIETY_KEPT = 0.9
_QUALITY_KEPT = 0.987


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
    """Of each round, the median of its images."""
    image_ms: list[float] = field(default_factory=list)
    """Of each image that was timed."""
    first_ms: list[float] = field(default_factory=list)
    """Of the first image after other decoders', which have taken the processor's caches."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


Rows = Mapping[str, Measured]


def speed_checks(rows: Rows) -> list[Check]:
    """How many times slower the others are, at the quality that `quality_checks` are about."""
    ours, ours_int8 = rows[OURS], rows[OURS_INT8]
    best_int8, best = (rows[fastest_form(rows, name)] for name in (BEST_AR_INT8, BEST_AR))
    first_int8 = rows[fastest_form(rows, BEST_AR_INT8, first=True)]
    # INT8 need not be the faster precision: onnxruntime's next tokens are not on a processor without VNNI.
    any_best, any_ours = (min(precisions, key=_median_ms) for precisions in ((best_int8, best), (ours_int8, ours)))
    return [
        speedup(best_int8, ours_int8, "speedup_vs_best_ar", 5, 20),
        speedup(best, ours, "speedup_vs_best_ar_fp32", None, 20),
        speedup(any_best, any_ours, "speedup_vs_best_ar_any_precision", None, 20),
        speedup(first_int8, ours_int8, "speedup_vs_best_ar_first_image", None, 20, first=True),
        speedup(rows[RASTER], ours, "speedup_vs_ar_cached", 15, 40),
        speedup(rows[NAIVE], ours, "speedup_vs_ar", 20, 200),
        speedup(rows[compared_one_scale(rows).name], ours, "speedup_vs_one_scale", 4, 8),
    ]


def fastest_form(rows: Rows, name: str, *, first: bool = False) -> str:
    """A decoder in several calls, or in one graph: whichever takes less time here, or with `first` for a first image."""
    forms = [name, *(other for other, calls in ONE_GRAPH.items() if calls == name and other in rows)]
    return min(forms, key=lambda form: _median_ms(rows[form], first=first))


def _median_ms(row: Measured, *, first: bool = False) -> float:
    return float(np.median(row.first_ms if first else row.times_ms))


@dataclass(frozen=True)
class ComparedOneScale:
    """The one-scale decoder whose time is set against ours, and in which sense it is as good."""

    name: str
    """In its fastest form."""
    as_varied_as: str | None
    """The row that it equals in variety, while it is as accurate as ours; None where no number of steps is: it is the
    fastest then, the least that ours could be credited with."""

    def describe(self) -> dict[str, str | bool | None]:
        reached = self.as_varied_as is not None
        return {"name": self.name, "as_varied_as": self.as_varied_as, "reaches_equal_quality": reached}


def compared_one_scale(rows: Rows) -> ComparedOneScale:
    """The fewest steps that are as accurate as ours and as varied. Where none are, those as varied as the best next-token
    decoder, which everything else is compared with. Where none are that either, the fastest."""
    measured = [name for name in ONE_SCALE.values() if name in rows]
    accurate = [name for name in measured if _as_accurate(rows[name], rows[OURS])]
    for varied in (OURS, BEST_AR):
        for name in accurate:
            if rows[name].variety >= _VARIETY_KEPT * rows[varied].variety:
                return ComparedOneScale(fastest_form(rows, name), varied)
    forms = [fastest_form(rows, name) for name in measured]
    return ComparedOneScale(min(forms, key=lambda form: _median_ms(rows[form])), None)


def _as_accurate(row: Measured, ours: Measured) -> bool:
    """Whether it is not shown to be less accurate by more than a point."""
    _, interval = paired_difference(row.correct, ours.correct)
    return interval.high >= -_EQUAL


def quality_checks(rows: Rows, spread: float, frechet_images: int) -> list[Check]:
    """Accuracy, equal quality, distance to real scenes and variety; `spread` is what other seeds change in the distance of
    the best next-token decoder; `frechet_images` is how many images of each decoder every distance is of."""
    ours, best, adapted = rows[OURS_INT8], rows[BEST_AR_INT8], rows[ADAPTED]
    n = rows[OURS].correct.size
    kept = ours.accuracy / best.accuracy
    varied, best_varied = rows[VARIED], rows[BEST_AR_VARIED]
    adapted_keeps = adapted.accuracy / rows[OURS].accuracy
    steps = checkpoints.describe("adapted")["steps"] / checkpoints.describe("progressive")["steps"]
    return [
        Check("quality_kept_accuracy", kept, _QUALITY_KEPT, 1.0, ours.correct.size),
        equality(rows[BEST_AR_INT8], rows[OURS_INT8], "equal_quality_best_ar"),
        equality(rows[BEST_AR], rows[OURS], "equal_quality_best_ar_fp32"),
        equality(rows[OURS_INT8], rows[OURS], "equal_quality_int8"),
        equality(rows[RASTER], rows[OURS], "equal_quality_raster_ar"),
        Check(
            "frechet_excess_in_seed_spreads",
            (ours.frechet - best.frechet) / spread,
            1,
            0,
            frechet_images,
            at_least=False,
        ),
        Check("variety_kept", ours.variety / best.variety, _VARIETY_KEPT, 1.0, n),
        Check("accuracy_where_varied", min(varied.accuracy, best_varied.accuracy), 0.9, 0.9, n),
        Check("variety_vs_best_ar", varied.variety / best_varied.variety, 0.9, 1.1, n),
        Check("variety_vs_real", varied.variety, None, 0.9, n),
        Check("adapted_quality_kept", adapted_keeps, _QUALITY_KEPT, 1.0, n),
        # What the accuracy does not tell: how alike an adapted model's images are, and how far from real ones.
        Check("adapted_variety_kept", adapted.variety / rows[OURS].variety, None, _VARIETY_KEPT, n),
        Check("adapted_frechet", adapted.frechet, None, rows[OURS].frechet, frechet_images, at_least=False),
        # Steps that do not keep the quality buy nothing, however few they are: all of the training is still to pay.
        Check(
            "adapt_cost_share",
            steps if adapted_keeps >= _QUALITY_KEPT else 1.0,
            0.3,
            0.1,
            n,
            at_least=False,
            aim_withheld=_lost_by_adapting(adapted, rows[OURS]),
        ),
    ]


def _lost_by_adapting(adapted: Measured, ours: Measured) -> str | None:
    """What few steps cost beside accuracy; None where the variety is kept."""
    kept = adapted.variety / ours.variety
    if kept >= _VARIETY_KEPT:
        return None
    return f"its variety is {kept:.2f} of ours, its Fréchet distance {adapted.frechet:.2f} where ours is {ours.frechet:.2f}"


def speedup(
    theirs: Measured, ours: Measured, name: str, bound: float | None, aim: float, *, first: bool = False
) -> Check:
    """Median over the rounds of the other decoder's time over ours, with its interval; `first`: of first images."""
    times = [row.first_ms if first else row.times_ms for row in (theirs, ours)]
    ratios = [other / own for other, own in zip(*times, strict=True)]
    interval = BOOTSTRAP.quantile([[ratio] for ratio in ratios], 0.5)
    return Check(name, float(np.median(ratios)), bound, aim, len(ratios), low=interval.low, high=interval.high)


def equality(row: Measured, ours: Measured, name: str) -> Check:
    """How far the interval of the difference to ours reaches from zero, in points of accuracy."""
    _, interval = paired_difference(row.correct, ours.correct)
    reach = 100 * max(abs(interval.low), abs(interval.high))
    return Check(name, reach, 100 * _EQUAL, 100 * _EQUAL, min(row.correct.size, ours.correct.size), at_least=False)

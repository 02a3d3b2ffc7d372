"""What `benchmarks.modality_gate` promises, and the rows that it is about."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from benchmarks.image_quality import BOOTSTRAP
from benchmarks.modality_gate_timing import Times, fastest, median
from benchmarks.report import Check
from benchmarks.story_quality import mean_interval, ratio_interval
from model.transformer.story import StoryGenerator

TWIN, GATED, ALL_OPEN = "ungated twin, dense", "gated, gathered", "gated, but every gate forced open"
HEADS_CUT = "fixed: every scene where the gate ever looks"
FIXED = (
    "fixed: each head's latest blocks",
    "fixed: the busiest head's latest scenes",
    "fixed: the latest scene, all heads (twin)",
)
RANDOM = ("random: the gate's openings, moved", "random: one scene, all heads (twin)")
_QUALITY_KEPT = 0.987
_BEATEN = 0.01
"""Accuracy by which a mask that does not look must be worse."""


@dataclass(frozen=True)
class Measured:
    """One row's answers."""

    model: StoryGenerator
    correct: np.ndarray
    """float64 [stories, requests per story], averaged over the draws."""
    skipped: float
    gates: list[list[Tensor]]
    """Of each story: those that were used (of the last draw)."""
    sketch_cells: float
    """Share of the sketch's cells that are those of the scene."""

    @property
    def accuracy(self) -> float:
        return float(self.correct.mean())


def checks(rows: Mapping[str, Measured], dense: Times, times: Times) -> list[Check]:
    """What is promised, from the rows, the times of the dense ways, and those of the rows."""
    gated, twin = rows[GATED], rows[TWIN]
    n = gated.correct.size
    kept = ratio_interval(gated.correct.mean(1), twin.correct.mean(1))
    quality = gated.accuracy / twin.accuracy
    fixed, random = (max((rows[name] for name in names), key=_accuracy) for names in (FIXED, RANDOM))
    full = {name: each for name, each in dense.items() if not name.endswith("bf16")}
    return [
        # What is skipped at the cost of quality does not count.
        Check("gate_skipped_share", gated.skipped if quality >= _QUALITY_KEPT else 0.0, 0.5, 0.67, n),
        Check("gate_quality_kept", quality, _QUALITY_KEPT, 1.0, n, low=kept.low, high=kept.high),
        _beats("gate_beats_fixed_mask", gated, fixed),
        _beats("gate_beats_random", gated, random),
        _speedup("gate_attention_speedup", times[f"attention: {TWIN}"], times[f"attention: {GATED}"], 1.5, 2.5),
        _speedup("gate_attention_speedup_fp32", full[fastest(full)], times[f"attention: {GATED}"], 1.5, 2.5),
        _speedup("gate_request_speedup", times[f"request: {TWIN}"], times[f"request: {GATED}"], None, 1.5),
    ]


def _speedup(name: str, slow: list[float], fast: list[float], bound: float | None, aim: float) -> Check:
    """Ratio of the medians; rounds are what is independent."""
    interval = BOOTSTRAP.quantile_ratio([[each] for each in slow], [[each] for each in fast], 0.5)
    value = median(slow) / median(fast)
    return Check(name, value, bound, aim, len(fast), low=interval.low, high=interval.high)


def _accuracy(measured: Measured) -> float:
    return measured.accuracy


def _beats(name: str, gated: Measured, other: Measured) -> Check:
    differences = (gated.correct - other.correct).mean(1)
    interval = mean_interval(differences)
    return Check(
        name, float(differences.mean()), _BEATEN, 0.5, gated.correct.size, low=interval.low, high=interval.high
    )

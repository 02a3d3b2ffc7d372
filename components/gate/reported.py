"""Numbers of each arm that a verdict shows beside its checks; what has a bound is a check."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, Arm, Measurements, Times, rounds
from components.gate.quality import bootstrap, correct_shares
from components.gate.settings import GateSettings

Numbers = dict[str, float | None]
_QUANTILES: tuple[tuple[str, Times, int], ...] = (
    ("p50_ms", "samples_ms", 50),
    ("p95_ms", "samples_ms", 95),
    ("first_preview_p50_ms", "preview_ms", 50),
    ("first_preview_p95_ms", "preview_ms", 95),
    ("server_p50_ms", "server_ms", 50),
)


def reported(settings: GateSettings, measured: Measurements) -> Numbers:
    """By name, `<arm>_<what>`; `None` where it was not measured."""
    candidate, full = measured.arms.get(CANDIDATE), measured.arms.get(FULL_PRECISION)
    numbers: Numbers = {
        "package_bytes_ratio": candidate.package_bytes / full.package_bytes if candidate and full else None,
        "judge_accuracy": measured.judge.accuracy if measured.judge else None,
        "detectable_p50_ratio": _detectable(settings, measured),
        "disturbed_rounds": _disturbed_rounds(candidate) if candidate else None,
    }
    for name, arm in measured.arms.items():
        correct = correct_shares(measured, name)
        of_arm: Numbers = {"accuracy": sum(correct) / len(correct) if correct else None}
        of_arm |= _times(arm) | _throughput(settings, measured, arm) | _open_load(arm)
        of_arm |= {"memory_mb": arm.memory_mb, "frechet": arm.frechet.value if arm.frechet else None}
        of_arm |= {metric: _mean(scores) for metric, scores in arm.scores.items()}
        numbers |= {f"{name}_{key}": value for key, value in of_arm.items()}
    return numbers


def _times(arm: Arm) -> Numbers:
    numbers: Numbers = {}
    for key, kind, percent in _QUANTILES:
        samples = [value for block in rounds(arm.latency_blocks, kind) for value in block]
        finite = [value for value in samples if value is not None and math.isfinite(value)]
        numbers[key] = float(np.percentile(finite, percent)) if finite else None
    for key in ("triton_queue_ms", "triton_compute_ms"):
        numbers[key] = _median([getattr(block, key) for block in arm.latency_blocks if not block.disturbed])
    return numbers


def _disturbed_rounds(arm: Arm) -> int:
    return len({block.round for block in arm.latency_blocks if block.disturbed})


def _throughput(settings: GateSettings, measured: Measurements, arm: Arm) -> Numbers:
    """Images per second over all chunks, and the interval from their spread."""
    if not arm.throughput_chunks:
        return dict.fromkeys(("images_per_s", "images_per_s_low", "images_per_s_high"))
    images = [chunk.images for chunk in arm.throughput_chunks]
    seconds = [chunk.seconds for chunk in arm.throughput_chunks]
    interval = bootstrap(settings, measured).rate(images, seconds)
    return {
        "images_per_s": sum(images) / sum(seconds),
        "images_per_s_low": interval.low,
        "images_per_s_high": interval.high,
    }


def _open_load(arm: Arm) -> Numbers:
    """Beside the offered rate the achieved one, until the last answer: a server that cannot keep up gives less."""
    load = arm.open_load
    if load is None:
        return dict.fromkeys(("open_load_per_s", "open_load_answered_per_s", "open_load_p95_ms"))
    return {
        "open_load_per_s": load.offered_per_s,
        "open_load_answered_per_s": len(load.image_ms) / load.seconds if load.seconds > 0 else None,
        "open_load_p95_ms": float(np.percentile(load.image_ms, 95)) if load.image_ms else None,
    }


def _detectable(settings: GateSettings, measured: Measurements) -> float | None:
    """The slow-down of the median latency that this measurement would have called broken as often as `gate.power` says: beyond the
    bound, as far as the noise of these very rounds reaches (a normal error of the ratio's logarithm)."""
    if CHAMPION not in measured.arms or CANDIDATE not in measured.arms:
        return None
    pair = [rounds(measured.arms[name].latency_blocks) for name in (CANDIDATE, CHAMPION)]
    ours, theirs = ([[v for v in block if v] for block in blocks] for blocks in pair)
    if not ours or len(ours) != len(theirs) or not all(map(len, [*ours, *theirs])):
        return None
    family = bootstrap(settings, measured)
    found = family.alone.quantile_ratio(ours, theirs, 0.50)
    tail = (1 - family.confidence) / 2
    error = math.log(found.high / found.low) / (2 * NormalDist().inv_cdf(1 - tail))
    reach = NormalDist().inv_cdf(1 - tail / family.family) + NormalDist().inv_cdf(settings.power)
    return settings.champion.max_p50_ratio * math.exp(reach * error)


def _median(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return float(np.median(numbers)) if numbers else None


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None

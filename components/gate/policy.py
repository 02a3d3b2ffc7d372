"""Which checks a candidate must keep: the absolute ones always, those against a champion where there is one."""

import math

import numpy as np

from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, Arm, Measurements, rounds
from components.gate import checks
from components.gate.quality import bootstrap, correct_shares, quality, quality_vs_champion
from components.gate.settings import GateSettings
from components.gate.verdict import Check


def all_checks(settings: GateSettings, measured: Measurements) -> list[Check]:
    """Every check, in the order in which a person reads them: quality, size, latency, then against the champion."""
    found = quality(settings, measured)
    found += [_tokenizer(settings, measured), _block_bytes(settings, measured), _latency(settings, measured)]
    if CHAMPION in measured.arms:
        found += [quality_vs_champion(settings, measured), *_latency_vs_champion(settings, measured)]
    return found


def reported(settings: GateSettings, measured: Measurements) -> dict[str, float | None]:
    """Numbers that no bound stands on, shown beside the checks; `None` where they were not measured."""
    candidate, full = measured.arms.get(CANDIDATE), measured.arms.get(FULL_PRECISION)
    numbers: dict[str, float | None] = {
        "package_bytes_ratio": candidate.package_bytes / full.package_bytes if candidate and full else None,
        "judge_accuracy": measured.judge.accuracy if measured.judge else None,
    }
    for name, arm in measured.arms.items():
        samples = [v for block in arm.latency_blocks for v in block.samples_ms if v is not None and math.isfinite(v)]
        correct = correct_shares(measured, name)
        numbers[f"{name}_accuracy"] = sum(correct) / len(correct) if correct else None
        for quantile in (50, 95):
            numbers[f"{name}_p{quantile}_ms"] = float(np.percentile(samples, quantile)) if samples else None
        numbers |= {f"{name}_{key}": value for key, value in _throughput(settings, measured, arm).items()}
    return numbers


def _throughput(settings: GateSettings, measured: Measurements, arm: Arm) -> dict[str, float | None]:
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


def _tokenizer(settings: GateSettings, measured: Measurements) -> Check:
    return checks.absolute(
        "tokenizer_ssim", "quality", measured.tokenizer_ssim, ">=", settings.absolute.min_tokenizer_ssim
    )


def _block_bytes(settings: GateSettings, measured: Measurements) -> Check:
    sizes = measured.block_bytes
    ratio = sizes.int8 / sizes.fp32 if sizes and sizes.fp32 > 0 else None
    return checks.absolute("block_bytes_ratio", "size", ratio, "<=", settings.absolute.max_block_bytes_ratio)


def _rounds(measured: Measurements, name: str) -> list[list[float | None]]:
    arm = measured.arms.get(name)
    return rounds(arm.latency_blocks) if arm else []


def _latency(settings: GateSettings, measured: Measurements) -> Check:
    return checks.latency_quantile(
        "image_p95_ms",
        _rounds(measured, CANDIDATE),
        0.95,
        settings.absolute.max_image_p95_ms,
        min_n=settings.min_latency_samples,
        min_rounds=settings.min_latency_rounds,
        bootstrap=bootstrap(settings, measured),
    )


def _latency_vs_champion(settings: GateSettings, measured: Measurements) -> list[Check]:
    bounds = (("p50_ratio_vs_champion", 0.50, settings.champion.max_p50_ratio),
              ("p95_ratio_vs_champion", 0.95, settings.champion.max_p95_ratio))  # fmt: skip
    return [
        checks.latency_ratio(
            name,
            _rounds(measured, CANDIDATE),
            _rounds(measured, CHAMPION),
            quantile,
            bound,
            min_n=settings.min_latency_samples,
            min_rounds=settings.min_latency_rounds,
            bootstrap=bootstrap(settings, measured),
        )
        for name, quantile, bound in bounds
    ]

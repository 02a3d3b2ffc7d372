"""Which checks a candidate must keep: the absolute ones always, those against a champion where there is one."""

import math
from collections import defaultdict
from statistics import median

from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, Arm, HeldoutLoss, Measurements
from components.benchmark.statistics import Bootstrap
from components.gate import checks
from components.gate.settings import GateSettings
from components.gate.verdict import Check


def all_checks(settings: GateSettings, measured: Measurements) -> list[Check]:
    """Every check, in the order in which a person reads them: quality, size, latency, then against the champion."""
    candidate, champion = measured.arms.get(CANDIDATE), measured.arms.get(CHAMPION)
    judged = measured.quality_metric == "judge"
    found = _judged_quality(settings, measured) if judged else [_likelihood(settings, candidate)]
    found += [_tokenizer(settings, measured), _block_bytes(settings, measured), _latency(settings, candidate)]
    if champion is not None:
        found.append(
            _accuracy_vs_champion(settings, measured)
            if judged
            else _likelihood_vs_champion(settings, candidate, champion)
        )
        found += _latency_vs_champion(settings, candidate, champion)
    return found


def reported(measured: Measurements) -> dict[str, float | None]:
    """Numbers that no bound stands on, shown beside the checks; `None` where they were not measured."""
    candidate, full = measured.arms.get(CANDIDATE), measured.arms.get(FULL_PRECISION)
    numbers: dict[str, float | None] = {
        "package_bytes_ratio": candidate.package_bytes / full.package_bytes if candidate and full else None,
        "judge_accuracy": measured.judge.accuracy if measured.judge else None,
    }
    for name, arm in measured.arms.items():
        samples = [v for block in arm.latency_blocks for v in block.samples_ms if v is not None and math.isfinite(v)]
        correct = _correct(measured, name)
        numbers[f"{name}_accuracy"] = sum(correct) / len(correct) if correct else None
        numbers[f"{name}_p50_ms"] = median(samples) if samples else None
        numbers[f"{name}_images_per_s"] = arm.throughput_images_per_s
    return numbers


def _bootstrap(settings: GateSettings) -> Bootstrap:
    return Bootstrap(settings.confidence, settings.bootstrap_resamples, settings.bootstrap_seed)


def _correct(measured: Measurements, name: str) -> list[float]:
    """For each caption the share of right images of an arm; empty where it was not measured on every caption."""
    arm = measured.arms.get(name)
    if arm is None or arm.correctness is None:
        return []
    whole = len(arm.correctness.correct) == len(measured.captions) * measured.seeds_per_caption
    return arm.correctness.share_by_caption(measured.seeds_per_caption) if whole else []


def rounds(arm: Arm | None) -> list[list[float | None]]:
    """An arm's latencies in milliseconds, one list for each round, in the rounds' order."""
    by_round: defaultdict[int, list[float | None]] = defaultdict(list)
    for block in arm.latency_blocks if arm else []:
        by_round[block.round] += block.samples_ms
    return [by_round[index] for index in sorted(by_round)]


def _judged_quality(settings: GateSettings, measured: Measurements) -> list[Check]:
    candidate, full = _correct(measured, CANDIDATE), _correct(measured, FULL_PRECISION)
    bounds, bootstrap, min_n = settings.absolute, _bootstrap(settings), settings.min_captions
    return [
        checks.share("accuracy_int8", candidate, ">=", bounds.min_accuracy, min_n=min_n, bootstrap=bootstrap),
        checks.difference(
            "accuracy_loss_int8",
            full,
            candidate,
            "<=",
            bounds.max_accuracy_loss_int8,
            min_n=min_n,
            bootstrap=bootstrap,
            decided_by="value",
        ),
    ]


def _likelihood(settings: GateSettings, candidate: Arm | None) -> Check:
    """Without a judge: the held-out loss relative to guessing evenly among the visual codes (ln of their number)."""
    heldout = candidate.heldout if candidate else None
    ratios = _over_guessing(heldout) if heldout else []
    return checks.share(
        "heldout_loss_ratio",
        ratios,
        "<=",
        settings.absolute.max_heldout_loss_ratio,
        min_n=settings.min_heldout_samples,
        bootstrap=_bootstrap(settings),
    )


def _over_guessing(heldout: HeldoutLoss) -> list[float | None]:
    guessing = math.log(heldout.visual_vocabulary)
    return [None if loss is None else loss / guessing for loss in heldout.loss_per_sample]


def _tokenizer(settings: GateSettings, measured: Measurements) -> Check:
    return checks.absolute(
        "tokenizer_ssim", "quality", measured.tokenizer_ssim, ">=", settings.absolute.min_tokenizer_ssim
    )


def _block_bytes(settings: GateSettings, measured: Measurements) -> Check:
    sizes = measured.block_bytes
    ratio = sizes.int8 / sizes.fp32 if sizes and sizes.fp32 > 0 else None
    return checks.absolute("block_bytes_ratio", "size", ratio, "<=", settings.absolute.max_block_bytes_ratio)


def _latency(settings: GateSettings, candidate: Arm | None) -> Check:
    return checks.latency_quantile(
        "image_p95_ms",
        rounds(candidate),
        0.95,
        settings.absolute.max_image_p95_ms,
        min_n=settings.min_latency_samples,
        min_rounds=settings.min_latency_rounds,
        bootstrap=_bootstrap(settings),
    )


def _accuracy_vs_champion(settings: GateSettings, measured: Measurements) -> Check:
    return checks.difference(
        "accuracy_vs_champion",
        _correct(measured, CANDIDATE),
        _correct(measured, CHAMPION),
        ">=",
        -settings.champion.accuracy_margin,
        min_n=settings.min_captions,
        bootstrap=_bootstrap(settings),
    )


def _likelihood_vs_champion(settings: GateSettings, candidate: Arm | None, champion: Arm) -> Check:
    name, margin = "heldout_loss_vs_champion", settings.champion.heldout_loss_margin
    ours, theirs = candidate.heldout if candidate else None, champion.heldout
    if ours and theirs:
        if ours.tokenizers_digest != theirs.tokenizers_digest:
            reason = "the champion has other tokenizers: a loss over other codes is not comparable"
            return checks.incomparable(name, "quality", "<=", margin, reason)
        if ours.evaluation_digest != theirs.evaluation_digest:
            reason = "the champion's loss was measured on another evaluation set"
            return checks.incomparable(name, "quality", "<=", margin, reason)
    return checks.difference(
        name,
        ours.loss_per_sample if ours else [],
        theirs.loss_per_sample if theirs else [],
        "<=",
        margin,
        min_n=settings.min_heldout_samples,
        bootstrap=_bootstrap(settings),
    )


def _latency_vs_champion(settings: GateSettings, candidate: Arm | None, champion: Arm) -> list[Check]:
    bounds = (("p50_ratio_vs_champion", 0.50, settings.champion.max_p50_ratio),
              ("p95_ratio_vs_champion", 0.95, settings.champion.max_p95_ratio))  # fmt: skip
    return [
        checks.latency_ratio(
            name,
            rounds(candidate),
            rounds(champion),
            quantile,
            bound,
            min_n=settings.min_latency_samples,
            min_rounds=settings.min_latency_rounds,
            bootstrap=_bootstrap(settings),
        )
        for name, quantile, bound in bounds
    ]

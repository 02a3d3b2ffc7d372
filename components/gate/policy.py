"""Which checks a candidate must keep: the absolute ones always, those against a champion where there is one."""

from dataclasses import replace

from components.benchmark.measurements import CANDIDATE, CHAMPION, CONTROL, Measurements, Times, paired_rounds, rounds
from components.gate import checks
from components.gate.own_metrics import own_metrics
from components.gate.quality import bootstrap, quality, quality_vs_champion
from components.gate.settings import GateSettings
from components.gate.verdict import Check

_BUSY = "other processes had the processors: measure again on a quieter machine"


def all_checks(settings: GateSettings, measured: Measurements) -> list[Check]:
    """Every check, in the order in which a person reads them: quality, size, latency, then against the champion."""
    found = [*quality(settings, measured), *own_metrics(settings, measured), *_safety(measured)]
    found += [_tokenizer(settings, measured), _block_bytes(settings, measured), *_latency(settings, measured)]
    if CHAMPION in measured.arms:
        found += [*quality_vs_champion(settings, measured), *_latency_vs_champion(settings, measured)]
        found += [*_throughput_vs_champion(settings, measured), *_memory_vs_champion(settings, measured)]
    busy = _busy(settings, measured)
    return [checks.undecided(check, busy) if busy and check.kind == "latency" else check for check in found]


def _busy(settings: GateSettings, measured: Measurements) -> str | None:
    """Why no latency of this measurement tells anything: other processes had the machine; None: they had not."""
    arm = measured.arms.get(CANDIDATE)
    by_round = {block.round: block.disturbed for block in arm.latency_blocks} if arm else {}
    disturbed, quiet = sum(by_round.values()), len(by_round) - sum(by_round.values())
    if not disturbed or (quiet >= settings.min_latency_rounds and quiet / len(by_round) >= settings.min_quiet_share):
        return None
    return f"other processes had the processors in {disturbed} of {len(by_round)} rounds: measure again on a quieter machine"


def unfit(settings: GateSettings, measured: Measurements) -> str | None:
    """Why two loads of one and the same champion say that nothing can be told from this measurement; None: they do not."""
    if CHAMPION not in measured.arms or CONTROL not in measured.arms:
        return None
    champion, control = paired_rounds(*(measured.arms[name].latency_blocks for name in (CHAMPION, CONTROL)))
    if not champion:
        return None
    # Not at the confidence of a repeated measurement: that would let two unequal loads of one package count as equal.
    bound, alone = (
        settings.max_control_ratio,
        replace(bootstrap(settings, measured).alone, confidence=settings.confidence),
    )
    found = checks.latency_ratio("control", control, champion, 0.50, bound, min_n=1, min_rounds=1, bootstrap=alone)
    if found.interval is None or found.value is None or (found.interval[0] <= bound and found.interval[1] >= 1 / bound):
        return None
    return (
        f"two loads of the champion differ by {found.value - 1:+.0%} in their median latency, surely by more than "
        f"{bound - 1:.0%}: this server or machine cannot tell a slower model"
    )


def _tokenizer(settings: GateSettings, measured: Measurements) -> Check:
    return checks.absolute(
        "tokenizer_ssim", "quality", measured.tokenizer_ssim, ">=", settings.absolute.min_tokenizer_ssim
    )


def _block_bytes(settings: GateSettings, measured: Measurements) -> Check:
    sizes = measured.block_bytes
    ratio = sizes.int8 / sizes.fp32 if sizes and sizes.fp32 > 0 else None
    return checks.absolute("block_bytes_ratio", "size", ratio, "<=", settings.absolute.max_block_bytes_ratio)


def _rounds(measured: Measurements, name: str, times: Times = "samples_ms") -> list[list[float | None]]:
    arm = measured.arms.get(name)
    return rounds(arm.latency_blocks, times) if arm else []


def _latency(settings: GateSettings, measured: Measurements) -> list[Check]:
    absolute, times = settings.absolute, bootstrap(settings, measured)
    bounds: list[tuple[str, Times, float | None, int]] = [
        ("image_p95_ms", "samples_ms", absolute.max_image_p95_ms, settings.min_latency_samples),
        ("first_preview_p95_ms", "preview_ms", absolute.max_first_preview_p95_ms, settings.min_previews),
    ]
    found = [
        checks.latency_quantile(
            name,
            _rounds(measured, CANDIDATE, kind),
            0.95,
            bound,
            min_n=least,
            min_rounds=settings.min_latency_rounds,
            bootstrap=times,
        )
        for name, kind, bound, least in bounds
        if bound is not None
    ]
    if absolute.max_open_load_error_share is not None:
        found.append(_open_load_errors(measured, absolute.max_open_load_error_share))
    return found


def _open_load_errors(measured: Measurements, bound: float) -> Check:
    load = measured.arms[CANDIDATE].open_load if CANDIDATE in measured.arms else None
    asked = len(load.image_ms) + load.errors if load else 0
    share = load.errors / asked if load and asked else None
    found = checks.absolute("open_load_error_share", "latency", share, "<=", bound, n=asked)
    return checks.undecided(found, _BUSY) if load and load.disturbed and not found.ok else found


def _throughput_vs_champion(settings: GateSettings, measured: Measurements) -> list[Check]:
    bound, name = settings.champion.min_throughput_ratio, "throughput_ratio_vs_champion"
    if bound is None:
        return []
    chunks = [measured.arms[arm].throughput_chunks if arm in measured.arms else [] for arm in (CANDIDATE, CHAMPION)]
    ours, theirs = ([chunk for chunk in arm if not chunk.disturbed] for arm in chunks)
    found = checks.throughput_ratio(name, ours, theirs, bound, bootstrap=bootstrap(settings, measured))
    if len(ours) < settings.min_quiet_share * len(chunks[0]):
        return [checks.undecided(found, _BUSY)]
    return [found]


def _safety(measured: Measurements) -> list[Check]:
    """All prompts that must be refused are; there is no check where none was named."""
    if not measured.safety_prompts:
        return []
    refused = measured.arms[CANDIDATE].safety_refused if CANDIDATE in measured.arms else []
    whole = len(refused) == measured.safety_prompts
    share = sum(refused) / len(refused) if whole else None
    return [checks.absolute("safety_prompts_refused", "safety", share, ">=", 1.0, n=len(refused))]


def _memory_vs_champion(settings: GateSettings, measured: Measurements) -> list[Check]:
    bound = settings.champion.max_memory_ratio
    if bound is None:
        return []
    ours, theirs = (measured.arms[name].memory_mb if name in measured.arms else None for name in (CANDIDATE, CHAMPION))
    ratio = ours / theirs if ours and theirs else None
    return [checks.absolute("memory_ratio_vs_champion", "size", ratio, "<=", bound)]


def _latency_vs_champion(settings: GateSettings, measured: Measurements) -> list[Check]:
    champion, images, previews = settings.champion, settings.min_latency_samples, settings.min_previews
    bounds: list[tuple[str, Times, float, float | None, int]] = [
        ("p50_ratio_vs_champion", "samples_ms", 0.50, champion.max_p50_ratio, images),
        ("p95_ratio_vs_champion", "samples_ms", 0.95, champion.max_p95_ratio, images),
        ("first_preview_ratio_vs_champion", "preview_ms", 0.50, champion.max_first_preview_ratio, previews),
    ]
    return [
        checks.latency_ratio(
            name,
            _rounds(measured, CANDIDATE, kind),
            _rounds(measured, CHAMPION, kind),
            quantile,
            bound,
            min_n=least,
            min_rounds=settings.min_latency_rounds,
            bootstrap=bootstrap(settings, measured),
        )
        for name, kind, quantile, bound, least in bounds
        if bound is not None
    ]

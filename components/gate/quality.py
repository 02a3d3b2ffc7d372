"""Quality: by the judge where it can read the images, else by the loss on held-out samples.

Each comparison first asks whether it has a meaning: a champion that learned from other data, or a loss over other
codes or other samples, gives INVALID and no number.
"""

import math
from dataclasses import replace

from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION, HeldoutLoss, Measurements
from components.benchmark.statistics import Bootstrap
from components.gate import checks
from components.gate.settings import GateSettings
from components.gate.verdict import Check

_SAME_QUESTIONS = {
    "tokenizers_digest": "other tokenizers, and a loss over other codes",
    "visual_vocabulary": "another number of visual codes",
    "evaluation_digest": "another evaluation set",
    "text_length": "another text_length, which decides what captions fit",
    "coarse_grid": "another grid of sketch tokens",
    "fine_grid": "another grid of image tokens",
    "samples_digest": "other held-out samples",
    "masks_digest": "other masks",
}
"""What two lists of losses must share to be paired, and how a reason names the difference."""


def bootstrap(settings: GateSettings, measured: Measurements) -> Bootstrap:
    """How this verdict's intervals are drawn; its family are the checks that an interval decides."""
    absolute, champion = settings.absolute, settings.champion
    deciding = [True, absolute.max_first_preview_p95_ms is not None, measured.quality_metric != "judge"]
    if CHAMPION in measured.arms:
        deciding += [True] * 3  # quality, p50 and p95
        deciding += [champion.max_first_preview_ratio is not None, champion.max_frechet_ratio is not None]
        deciding += [bounds.margin is not None for bounds in settings.metrics.values()]
    family = sum(deciding)
    return Bootstrap(settings.confidence_now, settings.resamples_now, settings.bootstrap_seed, family)


def correct_shares(measured: Measurements, name: str) -> list[float]:
    """For each caption the share of right images of an arm; empty where it was not measured on every caption."""
    arm = measured.arms.get(name)
    if arm is None or arm.correctness is None:
        return []
    whole = len(arm.correctness.correct) == len(measured.captions) * measured.seeds_per_caption
    return arm.correctness.share_by_caption(measured.seeds_per_caption) if whole else []


def quality(settings: GateSettings, measured: Measurements) -> list[Check]:
    """What every candidate must reach, and what INT8 may cost it."""
    if measured.quality_metric == "judge":
        return [_accuracy(settings, measured), _accuracy_loss_int8(settings, measured)]
    return [_heldout_loss_ratio(settings, measured), _heldout_loss_int8(settings, measured)]


def quality_vs_champion(settings: GateSettings, measured: Measurements) -> list[Check]:
    """Not worse than the champion, by a margin, on the same captions or samples; and as near to real images."""
    judged = measured.quality_metric == "judge"
    found = [(_accuracy_vs_champion if judged else _heldout_loss_vs_champion)(settings, measured)]
    bound = settings.champion.max_frechet_ratio
    if bound is not None:
        found.append(_frechet_vs_champion(settings, measured, bound))
    return found


def _frechet_vs_champion(settings: GateSettings, measured: Measurements, bound: float) -> Check:
    name = "frechet_ratio_vs_champion"
    reason = _other_data(measured, CANDIDATE) or _other_data(measured, CHAMPION)
    if reason:
        return checks.incomparable(name, "quality", "<=", bound, reason)
    ours, theirs = measured.arms[CANDIDATE].frechet, measured.arms[CHAMPION].frechet
    return checks.distance_ratio(name, ours, theirs, bound, bootstrap=bootstrap(settings, measured))


def _accuracy(settings: GateSettings, measured: Measurements) -> Check:
    name, bound = "accuracy_int8", settings.absolute.min_accuracy
    reason = _other_data(measured, CANDIDATE)
    if reason:
        return checks.incomparable(name, "quality", ">=", bound, reason)
    values = correct_shares(measured, CANDIDATE)
    return checks.share(name, values, ">=", bound, min_n=settings.min_captions, bootstrap=bootstrap(settings, measured))


def _accuracy_loss_int8(settings: GateSettings, measured: Measurements) -> Check:
    return checks.difference(
        "accuracy_loss_int8",
        correct_shares(measured, FULL_PRECISION),
        correct_shares(measured, CANDIDATE),
        "<=",
        settings.absolute.max_accuracy_loss_int8,
        min_n=settings.min_captions,
        bootstrap=bootstrap(settings, measured),
        decided_by="value",
        reach=1.0,
    )


def _accuracy_vs_champion(settings: GateSettings, measured: Measurements) -> Check:
    name, bound = "accuracy_vs_champion", -settings.champion.accuracy_margin
    reason = _other_data(measured, CANDIDATE) or _other_data(measured, CHAMPION)
    if reason:
        return checks.incomparable(name, "quality", ">=", bound, reason)
    return checks.difference(
        name,
        correct_shares(measured, CANDIDATE),
        correct_shares(measured, CHAMPION),
        ">=",
        bound,
        min_n=settings.min_captions,
        bootstrap=bootstrap(settings, measured),
        reach=1.0,
    )


def _heldout_loss_ratio(settings: GateSettings, measured: Measurements) -> Check:
    """The held-out loss relative to guessing evenly among the visual codes (ln of their number)."""
    name, bound = "heldout_loss_ratio", settings.absolute.max_heldout_loss_ratio
    reason = _other_data(measured, CANDIDATE)
    if reason:
        return checks.incomparable(name, "quality", "<=", bound, reason)
    heldout = _heldout(measured, CANDIDATE)
    return checks.share(
        name,
        _over_guessing(heldout) if heldout else [],
        "<=",
        bound,
        min_n=settings.min_heldout_samples,
        bootstrap=bootstrap(settings, measured),
        groups=heldout.groups if heldout else None,
    )


def _heldout_loss_int8(settings: GateSettings, measured: Measurements) -> Check:
    """INT8 minus full precision, nats per token. What rounding does to one picture it does not do to the next, however alike
    the two are: here samples stand alone."""
    return _loss_difference(
        settings, measured, "heldout_loss_int8", FULL_PRECISION, settings.absolute.max_heldout_loss_int8, grouped=False
    )


def _heldout_loss_vs_champion(settings: GateSettings, measured: Measurements) -> Check:
    name, bound = "heldout_loss_vs_champion", settings.champion.heldout_loss_margin
    reason = _other_data(measured, CANDIDATE) or _other_data(measured, CHAMPION)
    if reason:
        return checks.incomparable(name, "quality", "<=", bound, reason)
    return _loss_difference(settings, measured, name, CHAMPION, bound, grouped=True)


def _loss_difference(
    settings: GateSettings, measured: Measurements, name: str, other: str, bound: float, *, grouped: bool
) -> Check:
    """The candidate's held-out losses minus those of the arm `other`, sample by sample. They travel with the packages: who
    measures again gets the same ones, and no second chance."""
    ours, theirs = _heldout(measured, CANDIDATE), _heldout(measured, other)
    if ours and theirs:
        for field, difference in _SAME_QUESTIONS.items():
            if getattr(ours, field) != getattr(theirs, field):
                reason = f"the loss of the {other} is about {difference}: not comparable"
                return checks.incomparable(name, "quality", "<=", bound, reason)
    noted = [arm.groups for arm in (ours, theirs) if arm and arm.groups]
    return checks.difference(
        name,
        ours.loss_per_sample if ours else [],
        theirs.loss_per_sample if theirs else [],
        "<=",
        bound,
        min_n=settings.min_heldout_samples,
        bootstrap=replace(bootstrap(settings, measured), confidence=settings.confidence),
        groups=noted[0] if grouped and noted else None,
    )


def _other_data(measured: Measurements, name: str) -> str | None:
    """Why no quality of this arm counts on the measured evaluation set: its training held out another one, so it may
    have learned from these samples, or from data of another kind."""
    arm = measured.arms.get(name)
    if arm is None or arm.evaluation_digest == measured.evaluation_digest:
        return None
    return (
        f"the {name} learned from other data: its training held out evaluation set {arm.evaluation_digest[:12]}, "
        f"and {measured.evaluation_digest[:12]} was measured on; keep other data under a home of its own (--home)"
    )


def _heldout(measured: Measurements, name: str) -> HeldoutLoss | None:
    arm = measured.arms.get(name)
    return arm.heldout if arm else None


def _over_guessing(heldout: HeldoutLoss) -> list[float | None]:
    guessing = math.log(heldout.visual_vocabulary)
    return [None if loss is None else loss / guessing for loss in heldout.loss_per_sample]

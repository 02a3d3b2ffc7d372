"""Checks of the user's own metrics: a least mean score, and not worse than the champion by more than a margin."""

from components.benchmark.measurements import CANDIDATE, CHAMPION, Measurements
from components.gate import checks
from components.gate.quality import bootstrap
from components.gate.settings import GateSettings
from components.gate.verdict import Check


def own_metrics(settings: GateSettings, measured: Measurements) -> list[Check]:
    """The checks of every metric that has bounds, whether or not it was measured: an absent one fails."""
    found = []
    for name, bounds in settings.metrics.items():
        if bounds.minimum is not None:
            found.append(
                checks.share(
                    name,
                    _scores(measured, CANDIDATE, name),
                    ">=",
                    bounds.minimum,
                    min_n=_least(settings, measured),
                    bootstrap=bootstrap(settings, measured),
                )
            )
        if bounds.margin is not None and CHAMPION in measured.arms:
            found.append(
                checks.difference(
                    f"{name}_vs_champion",
                    _scores(measured, CANDIDATE, name),
                    _scores(measured, CHAMPION, name),
                    ">=",
                    -bounds.margin,
                    min_n=_least(settings, measured),
                    bootstrap=bootstrap(settings, measured),
                    reach=_reach(measured, name),
                )
            )
    return found


def _least(settings: GateSettings, measured: Measurements) -> int:
    return settings.min_captions if measured.quality_metric == "judge" else settings.min_heldout_samples


def _reach(measured: Measurements, name: str) -> float:
    """1 for scores that are all 0 or 1: yes and no, where a rare one may not have been met. Others differ in most pairs."""
    arms = [measured.arms[arm] for arm in (CANDIDATE, CHAMPION) if arm in measured.arms]
    met = {score for arm in arms for score in arm.scores.get(name, []) if score is not None}
    return 1.0 if met <= {0.0, 1.0} else 0.0


def _scores(measured: Measurements, arm: str, name: str) -> list[float | None]:
    """The mean over the seeds of each caption: captions are what is independent. One score that is missing is kept."""
    found = measured.arms.get(arm)
    scores = found.scores.get(name, []) if found else []
    captions = len(measured.captions)
    if len(scores) != captions * measured.seeds_per_caption:
        return []
    return [_mean(scores[caption::captions]) for caption in range(captions)]


def _mean(scores: list[float | None]) -> float | None:
    numbers = [score for score in scores if score is not None]
    return sum(numbers) / len(numbers) if len(numbers) == len(scores) else None

"""Canaries among the experiments: two arms, the champion and the package that may replace it."""

from collections.abc import Iterable

from serving.release.experiments.experiment import CANARY_ARM, CHAMPION_ARM, Experiment
from serving.release.experiments.states import Record


def pair_of(experiment: Experiment) -> tuple[str, str] | None:
    """The digests of champion and canary; `None` for an A/B test of other arms."""
    if [arm.name for arm in experiment.arms] != [CHAMPION_ARM, CANARY_ARM]:
        return None
    return experiment.control.digest, experiment.arm(CANARY_ARM).digest


def active_canary(records: Iterable[Record], but: str | None = None) -> Record | None:
    """The experiment whose canary has a share of the users, or gets it as soon as its model is served; `but` names one
    that is not meant."""
    for record in records:
        experiment = record.experiment
        if experiment.name != but and pair_of(experiment) is not None and experiment.arm(CANARY_ARM).share > 0:
            return record
    return None


def overtaken(experiment: Experiment, champion: str | None) -> str | None:
    """Why a canary must not go on where `champion` is the champion; `None` where it may, or is over."""
    pair = pair_of(experiment)
    if pair is None or champion is None or pair[0] == champion or experiment.arm(CANARY_ARM).status == "stopped":
        return None
    if pair[1] == champion:
        return "its package is the champion now"
    return f"the champion that it was compared with, {pair[0][:12]}, was replaced by {champion[:12]}"

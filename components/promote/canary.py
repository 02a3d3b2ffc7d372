"""A canary of a package in staging, and what a promotion to champion asks of it."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import GateError, UsageError
from components.promote.settings import PromotionSettings
from serving.release.experiments.experiment import CANARY_ARM, CHAMPION_ARM, Experiment, canary
from serving.release.experiments.states import ExperimentStore, Record
from serving.release.rows import STAGING_STAGE
from serving.release.store import ReleaseStore


def start_canary(
    settings: PromotionSettings,
    digest: str,
    *,
    name: str,
    actor: str,
    reason: str,
    release_url: str,
    experiments_url: str,
) -> Record:
    """Begin an experiment of the package `digest`, which stands in staging, against the champion of now.

    Raises `GateError` where it is not in staging or there is no champion, `UsageError` where the name is taken or another
    canary runs, `ExperimentConflictError` where somebody took the name meanwhile.
    """
    releases = ReleaseStore(release_url)
    try:
        staged, champion = releases.current(STAGING_STAGE), releases.current()
    finally:
        releases.close()
    if staged is None or staged.digest != digest:
        raise GateError(
            f"package {digest} is not in staging",
            where=f"stage '{STAGING_STAGE}'",
            fix="promote it there first: emuflow promote VERSION --to staging",
        )
    if champion is None:
        raise GateError("there is no champion to compare it with", fix="promote it: the first champion needs no canary")
    if champion.digest == digest:
        raise GateError(f"package {digest} is the champion already")
    with experiments(experiments_url) as states:
        if states.history(name):
            raise UsageError(f"there is an experiment '{name}' already", fix="outcomes belong to a name: take another")
        running = active_canary(states)
        if running is not None:
            raise UsageError(
                f"the canary '{running.experiment.name}' runs",
                fix=f"stop it: emuflow canary stop {running.experiment.name}",
            )
        planned = canary(name, control_digest=champion.digest, canary_digest=digest, policy=settings.canary_policy)
        return states.change(planned, expected_sequence=0, actor=actor, reason=reason)


def passed_canary(experiments_url: str | None, *, champion: str, candidate: str) -> Record:
    """The experiment in which `candidate` was proven not to be worse than `champion`. Raises `GateError` where there is
    none: one that was passed and then stopped does not count, nor one against another champion."""
    pairs: list[Record] = []
    if experiments_url is not None:
        with experiments(experiments_url) as states:
            pairs = [record for record in states.newest() if _pair(record.experiment) == (champion, candidate)]
    for record in pairs:
        if record.experiment.arm(CANARY_ARM).status == "passed":
            return record
    told = (
        ", ".join(f"'{each.experiment.name}' is {each.experiment.arm(CANARY_ARM).status}" for each in pairs)
        or "there is none"
    )
    raise GateError(
        f"the policy (promotion.canary) wants a canary that passed against the champion {champion[:12]}: {told}",
        where=f"package {candidate}",
        fix="start one (emuflow canary start VERSION), or wait until it is decided",
    )


def active_canary(states: ExperimentStore) -> Record | None:
    """The experiment whose canary has a share of the users now."""
    for record in states.newest():
        if _pair(record.experiment) is not None and record.experiment.arm(CANARY_ARM).share > 0:
            return record
    return None


def end_canary(experiments_url: str, candidate: str, *, actor: str) -> None:
    """Send nobody to the canary of a package that has become the champion."""
    with experiments(experiments_url) as states:
        record = active_canary(states)
        if record is None or record.experiment.arm(CANARY_ARM).digest != candidate:
            return
        ended = record.experiment.arm(CANARY_ARM).model_copy(update={"share": 0.0, "status": "stopped"})
        states.change(
            record.experiment.with_arm(ended),
            expected_sequence=record.sequence,
            actor=actor,
            reason="its package is the champion now",
        )


@contextmanager
def experiments(url: str) -> Iterator[ExperimentStore]:
    """The store of experiments for a block."""
    states = ExperimentStore(url)
    try:
        yield states
    finally:
        states.close()


def _pair(experiment: Experiment) -> tuple[str, str] | None:
    """The digests of champion and canary; `None` for an A/B test of other arms."""
    names = [arm.name for arm in experiment.arms]
    return (
        (experiment.control.digest, experiment.arm(CANARY_ARM).digest) if names == [CHAMPION_ARM, CANARY_ARM] else None
    )

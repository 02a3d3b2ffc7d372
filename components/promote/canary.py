"""A canary of a package in staging, and what a promotion to champion asks of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from common.errors import EmuflowError, GateError, UsageError
from components.promote.policy import registered_policy
from components.promote.settings import PromotionSettings
from serving.release.experiments.canary import only_canary, stopped_pair
from serving.release.experiments.experiment import CANARY_ARM, Experiment, Status, canary
from serving.release.experiments.pairs import overtaken, pair_of
from serving.release.experiments.policy import Policy
from serving.release.experiments.states import ExperimentStore, Record
from serving.release.rows import STAGING_STAGE, Release
from serving.release.store import ReleaseStore


def start_canary(
    of_run: PromotionSettings | None,
    digest: str,
    *,
    name: str,
    actor: str,
    reason: str,
    release_url: str,
    experiments_url: str,
) -> Record:
    """Begin an experiment of the package `digest`, which stands in staging, against the champion of now. It goes by the
    policy that was registered with its evidence, else by `of_run` (`registered_policy`), and nobody is sent to it before
    its model is served.

    Raises `GateError` where it is not in staging, there is no champion or its policy is not known, `UsageError` where the
    name is taken or another canary runs, `ExperimentConflictError` where somebody took the name meanwhile.
    """
    releases = ReleaseStore(release_url)
    try:
        staged, champion = releases.current(STAGING_STAGE), releases.current()
        control = _comparable(digest, staged, champion)
        policy = registered_policy(releases, digest, staged.evidence_digest if staged else None, of_run).canary_policy
    finally:
        releases.close()
    planned = canary(name, control_digest=control, canary_digest=digest, policy=policy, served=False)

    def refuse(records: list[Record]) -> EmuflowError | None:
        if name in {record.experiment.name for record in records}:
            return UsageError(f"there is an experiment '{name}' already", fix="outcomes belong to a name: take another")
        return only_canary(name)(records)

    with experiments(experiments_url) as states:
        return states.change(planned, expected_sequence=0, actor=actor, reason=reason, refuse=refuse)


def _comparable(digest: str, staged: Release | None, champion: Release | None) -> str:
    """The champion that the package can be compared with."""
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
    return champion.digest


def passed_canary(experiments_url: str | None, *, champion: str, candidate: str, policy: Policy) -> Record:
    """The state in which an experiment proved `candidate` not to be worse than `champion`, by the `policy` that was
    registered with its evidence.

    Of several experiments of this pair, the one that was decided last counts. Raises `GateError` where it was stopped,
    after it had passed, too, where it went by another policy, or where none is decided: one against another champion does
    not count.
    """
    records: list[Record] = []
    decided: list[Record] = []
    if experiments_url is not None:
        with experiments(experiments_url) as states:
            records = [each for each in states.newest() if pair_of(each.experiment) == (champion, candidate)]
            decided = [_decision(states, each) for each in records if _status(each.experiment) != "running"]
    last = max(decided, key=lambda each: each.time, default=None)
    if last is not None and _status(last.experiment) == "passed":
        if last.experiment.policy == policy:
            return last
        raise GateError(
            f"canary '{last.experiment.name}' passed by another policy than the one that was registered "
            "(promotion.canary_policy)",
            where=f"package {candidate}",
            fix="start one that goes by it: emuflow canary start VERSION",
        )
    told = ", ".join(f"'{each.experiment.name}' is {_status(each.experiment)}" for each in records) or "there is none"
    raise GateError(
        f"the policy (promotion.canary) wants a canary that passed against the champion {champion[:12]}: {told}",
        where=f"package {candidate}",
        fix="start one (emuflow canary start VERSION), or wait until it is decided",
    )


def end_overtaken(experiments_url: str, champion: Callable[[], str | None], *, actor: str) -> None:
    """End every canary that is not compared with the champion of now: its package has become it, or another one has.

    Raises `ExperimentConflictError` where somebody changes one at this moment.
    """
    with experiments(experiments_url) as states:
        for record in states.newest():
            reason = overtaken(record.experiment, champion())
            if reason is not None:
                states.change(
                    stopped_pair(record.experiment), expected_sequence=record.sequence, actor=actor, reason=reason
                )


@contextmanager
def experiments(url: str) -> Iterator[ExperimentStore]:
    """The store of experiments for a block."""
    states = ExperimentStore(url)
    try:
        yield states
    finally:
        states.close()


def _status(experiment: Experiment) -> Status:
    return experiment.arm(CANARY_ARM).status


def _decision(states: ExperimentStore, now: Record) -> Record:
    """The state since which its canary has had the status of now; its share may have changed since."""
    decision = now
    for record in states.history(now.experiment.name):
        if _status(record.experiment) != _status(now.experiment):
            break
        decision = record
    return decision

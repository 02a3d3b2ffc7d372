"""The canary's state machine: running, then stopped or passed, decided from the event store alone.

running --(a metric is proven worse by more than its margin)--> stopped: its share is 0 from then on
running --(nothing looks bad, enough users at this share)-----> running, on the next step of the ramp
running --(last step, every metric proven not worse)----------> passed: it may be promoted
passed  --(a metric is proven worse after all)----------------> stopped
any     --(the champion that it was compared with is replaced)-> stopped
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from common.errors import ExperimentConflictError, UsageError
from serving.release.experiments.evaluation import Evaluation, evaluate
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import CANARY_ARM, Arm, Experiment
from serving.release.experiments.pairs import active_canary, overtaken, pair_of
from serving.release.experiments.states import ExperimentStore, Record, Refuse

_WATCHED = ("running", "passed")
Champion = Callable[[], str | None]
"""Gives the digest of the champion as it is now."""


@dataclass(frozen=True)
class Look:
    """What was seen, and what came of it."""

    record: Record
    """The state after the look."""
    evaluations: tuple[Evaluation, ...]
    changed: bool
    """Whether this look changed the state; one that another process changed meanwhile is only read."""


class Canary:
    """Looks at an experiment, at any time and from any number of processes, and acts on what is proven."""

    def __init__(
        self,
        states: ExperimentStore,
        events: EventStore,
        name: str,
        *,
        actor: str = "canary",
        champion: Champion | None = None,
    ):
        """With `champion`, a look also ends a canary whose control is no longer the champion."""
        self._states, self._events, self._name, self._actor = states, events, name, actor
        self._champion = champion

    def look(self, now: float | None = None) -> Look:
        """Evaluate every challenger as of `now` (seconds since 1970), and change the state where that is due."""
        record = self._states.current(self._name)
        before = record.experiment
        if (ended := self._end(record)) is not None:
            return ended
        watched = [arm for arm in before.challengers if arm.status in _WATCHED]
        now = time.time() if now is None else now
        evaluations, after, reasons = [], before, []
        for arm in watched:
            evaluation = evaluate(self._events, before, arm, now, bounds=False)
            decided, _ = decide(before, arm, evaluation)
            if decided != arm:
                evaluation = evaluate(self._events, before, arm, now)
                decided, reason = decide(before, arm, evaluation)
                after = after.with_arm(decided)
                reasons.append(reason)
            evaluations.append(evaluation)
        if not reasons:
            return Look(record, tuple(evaluations), changed=False)
        return self._change(record, after, "\n".join(reasons), tuple(evaluations))

    def set_share(self, arm: str, share: float, *, actor: str, reason: str) -> Record:
        """Give a challenger another share of all users, by a person's decision.

        Raises `SettingsError` for a share that cannot be, `UsageError` where the arm was stopped or another canary has
        users, `ExperimentConflictError` where the state changed meanwhile.
        """
        record = self._states.current(self._name)
        found = record.experiment.arm(arm)
        if found.status == "stopped":
            raise UsageError(f"arm '{arm}' was stopped", where=f"experiment '{self._name}'", fix="start a new one")
        changed = record.experiment.with_arm(Arm.parse(found.model_dump() | {"share": share}, where=f"arm '{arm}'"))
        alone = only_canary(self._name) if share > 0 and pair_of(changed) is not None else None
        return self._states.change(changed, expected_sequence=record.sequence, actor=actor, reason=reason, refuse=alone)

    def stop(self, arm: str, *, actor: str, reason: str) -> Record:
        """Stop a challenger by a person's decision."""
        record = self._states.current(self._name)
        changed = record.experiment.with_arm(_stopped(record.experiment.arm(arm)))
        return self._states.change(changed, expected_sequence=record.sequence, actor=actor, reason=reason)

    def _end(self, record: Record) -> Look | None:
        """The champion is asked for after the state was read, so that it is not an older one than the control."""
        reason = overtaken(record.experiment, self._champion()) if self._champion is not None else None
        if reason is None:
            return None
        return self._change(record, stopped_pair(record.experiment), reason, ())

    def _change(self, record: Record, after: Experiment, reason: str, evaluations: tuple[Evaluation, ...]) -> Look:
        evidence = {each.arm: [finding.describe() for finding in each.findings] for each in evaluations}
        try:
            changed = self._states.change(
                after, expected_sequence=record.sequence, actor=self._actor, reason=reason, evidence=evidence
            )
        except ExperimentConflictError:
            return Look(self._states.current(self._name), evaluations, changed=False)
        return Look(changed, evaluations, changed=True)


def only_canary(name: str) -> Refuse:
    """Refuses a share of the users for the canary `name` while another one has one."""

    def refuse(records: list[Record]) -> UsageError | None:
        other = active_canary(records, but=name)
        if other is None:
            return None
        return UsageError(
            f"the canary '{other.experiment.name}' runs", fix=f"stop it: emuflow canary stop {other.experiment.name}"
        )

    return refuse


def stopped_pair(experiment: Experiment) -> Experiment:
    """The same canary, at its end."""
    return experiment.with_arm(_stopped(experiment.arm(CANARY_ARM)))


def decide(experiment: Experiment, arm: Arm, evaluation: Evaluation) -> tuple[Arm, str]:
    """What becomes of an arm, and why; the arm itself and no reason where it goes on."""
    policy = experiment.policy
    if evaluation.worse:
        proven = "; ".join(str(finding) for finding in evaluation.worse)
        return _stopped(arm), f"'{arm.name}' is stopped: {proven}"
    if arm.status != "running" or min(evaluation.users_at_share) < policy.min_users:
        return arm, ""
    if arm.step + 1 < len(policy.ramp):
        if not evaluation.may_grow:
            return arm, ""
        share = policy.ramp[arm.step + 1] / len(experiment.challengers)
        grown = arm.model_copy(update={"share": max(share, arm.share), "step": arm.step + 1})
        return grown, f"'{arm.name}' goes from {arm.share:g} to {grown.share:g} of all users: nothing looks bad"
    if evaluation.passes:
        proven = "; ".join(str(finding) for finding in evaluation.findings)
        return arm.model_copy(update={"status": "passed"}), f"'{arm.name}' passes: {proven}"
    return arm, ""


def _stopped(arm: Arm) -> Arm:
    return arm.model_copy(update={"status": "stopped", "share": 0.0})

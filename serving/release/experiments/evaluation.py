"""What the recorded outcomes prove of an arm, metric by metric."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from serving.release.experiments.events import EventStore, EventTable
from serving.release.experiments.experiment import Arm, Experiment
from serving.release.experiments.policy import Policy
from serving.release.experiments.sequential import Effects, estimate_effects, predictable_centre
from serving.release.experiments.units import Units, find_units

Verdict = Literal["worse", "not worse", "open", "missing"]
NEW, RETURNING = "new users", "returning users"
LATENCY_REACH = math.log(4)
"""A latency counts as at most four times, at least a quarter of the usual one: a single one decides nothing. Cutting off
shrinks differences and never turns one that keeps the margin into one that does not."""
_SHORTEST_MS = 0.01
_ALPHA_ASSIGNMENT = 0.001


@dataclass(frozen=True)
class Finding:
    """One metric in one kind of users. Effect and bounds are differences, challenger minus control, or for latency the
    ratio; None where nothing can be said, and bounds also where nobody asked for them."""

    metric: str
    scope: str
    verdict: Verdict
    margin: float
    effect: float | None
    low: float | None
    """The effect is at least this, at all times together with the confidence at which an arm is stopped."""
    high: float | None
    """The effect is at most this, with the confidence at which an arm passes."""
    users: int
    control_users: int

    @property
    def looks_bad(self) -> bool:
        """Whether the arm should not grow: nothing is known, or what is known lies beyond the margin."""
        return self.verdict in ("worse", "missing") or self.effect is None or self.effect > self.margin

    def describe(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        shown = "nothing known" if self.effect is None else f"{self.effect:.4g}"
        bounds = "" if self.low is None or self.high is None else f" [{self.low:.4g}, {self.high:.4g}]"
        counted = f"{self.users} users against {self.control_users}"
        return f"{self.metric} of {self.scope}: {self.verdict}, {shown}{bounds}, margin {self.margin:g}, {counted}"


@dataclass(frozen=True)
class Evaluation:
    """What is proven of one challenger."""

    arm: str
    findings: tuple[Finding, ...]
    users_at_share: tuple[int, int]
    """New users of the challenger and of the control, at the share that the challenger has now."""
    assignment_fits: bool
    """False where more or fewer users than chance allows are on the arm: outcomes are missing, or the split is wrong."""
    foreign_events: int
    """Answered by a package that is not the arm's, and left out."""

    @property
    def worse(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.verdict == "worse"]

    @property
    def may_grow(self) -> bool:
        return self.assignment_fits and not any(finding.looks_bad for finding in self.findings if finding.scope == NEW)

    @property
    def passes(self) -> bool:
        new = [finding.verdict for finding in self.findings if finding.scope == NEW]
        return self.assignment_fits and not self.worse and bool(new) and all(verdict == "not worse" for verdict in new)


def evaluate(
    store: EventStore, experiment: Experiment, challenger: Arm, now: float, *, bounds: bool = True
) -> Evaluation:
    """Judge a challenger by the event store alone, as of `now` (seconds since 1970).

    The result is the same however often anybody looked before: what was proven at any time stays proven. `bounds` are
    for people, decisions need none; they take several times longer than all the rest.
    """
    digests = [experiment.control.digest, challenger.digest]
    policy = experiment.policy
    outcomes = store.table(experiment.name, challenger.name, "outcome", digests)
    votes = store.table(experiment.name, challenger.name, "vote", digests)
    units, vote_units = find_units(outcomes, policy, now), find_units(votes, policy, now)
    findings: list[Finding] = []
    for metric in policy.margins:
        table, own = (votes, vote_units) if metric == "bad_vote_share" else (outcomes, units)
        findings += judge(metric, own, own.means(_row_values(metric, table, policy)), policy, bounds=bounds)
    share = challenger.share * len(experiment.challengers)
    return Evaluation(
        arm=challenger.name,
        findings=tuple(findings),
        users_at_share=_users(units, ~units.returning & (units.share == share)),
        assignment_fits=_assignment_fits(units),
        foreign_events=outcomes.foreign + votes.foreign,
    )


def judge(metric: str, units: Units, values: np.ndarray, policy: Policy, *, bounds: bool) -> list[Finding]:
    """The findings of one metric from its `values` [units]; every metric is of badness, so that more is worse."""
    scopes = [NEW] if policy.recount_after_s is None else [NEW, RETURNING]
    alpha = policy.alpha / (len(policy.margins) * len(scopes))
    return [_finding(metric, scope, units, values, policy, alpha, bounds) for scope in scopes]


def _finding(
    metric: str, scope: str, units: Units, values: np.ndarray, policy: Policy, alpha: float, bounds: bool
) -> Finding:
    latency = metric == "latency_ratio"
    effects = estimate(metric, scope, units, values)
    users, control_users = _users(units, units.returning if scope == RETURNING else ~units.returning)
    told = policy.margins[metric]
    margin = math.log(told) if latency else told
    limit = 2 * LATENCY_REACH if latency else 1.0
    numbers: list[float | None] = [None, None, None]
    if len(effects):
        numbers[0] = min(max(effects.mean, -limit), limit)  # of few users the mean may lie beyond what can be
    if len(effects) and bounds:
        numbers[1:] = effects.at_least(alpha, limit), effects.at_most(policy.alpha_pass, limit)
    effect, low, high = (math.exp(number) if latency and number is not None else number for number in numbers)
    return Finding(
        metric=metric,
        scope=scope,
        verdict=_verdict(effects, margin, alpha, policy, min(users, control_users), scope),
        margin=told,
        effect=effect,
        low=low,
        high=high,
        users=users,
        control_users=control_users,
    )


def _verdict(effects: Effects, margin: float, alpha: float, policy: Policy, users: int, scope: str) -> Verdict:
    if not len(effects):
        return "missing"
    if effects.log_evidence_worse(margin).max() >= -math.log(alpha):
        return "worse"
    if users < policy.min_users:
        return "missing"
    if scope == NEW and effects.log_evidence_not_worse(margin).max() >= -math.log(policy.alpha_pass):
        return "not worse"
    return "open"


def estimate(metric: str, scope: str, units: Units, values: np.ndarray) -> Effects:
    """The effects of one metric from its `values` [units], for latency in logarithms.

    Returning users are measured from their own past, so that what is constant in a user or in an arm falls out. The first
    unit has nothing before it to be measured from, and only sets the centre.
    """
    chosen = units.returning if scope == RETURNING else ~units.returning
    change = values[chosen] - (units.own_past(values)[chosen] if scope == RETURNING else 0.0)
    centre = predictable_centre(change, 0.0)
    deviation, low, high = change - centre, -centre, 1 - centre
    if metric == "latency_ratio" or scope == RETURNING:
        reach = LATENCY_REACH if metric == "latency_ratio" else 1.0
        low, high = np.full_like(centre, -reach), np.full_like(centre, reach)
        deviation = np.clip(deviation, low, high)
    return estimate_effects(
        units.is_challenger[chosen][1:], units.probability[chosen][1:], deviation[1:], low[1:], high[1:]
    )


def _row_values(metric: str, table: EventTable, policy: Policy) -> np.ndarray:
    """[rows] the badness of each event: a share's 0 or 1, or the logarithm of milliseconds."""
    if metric == "bad_vote_share":
        return (table.vote < 0).astype(float)
    if metric == "error_rate":
        return table.failed.astype(float)
    if metric == "slow_share":
        return (table.failed | (table.latency_ms > (policy.slow_ms or math.inf))).astype(float)
    # A request that failed at once was not a fast one.
    return np.log(np.maximum(np.where(table.failed, policy.failure_latency_ms, table.latency_ms), _SHORTEST_MS))


def _assignment_fits(units: Units) -> bool:
    """Whether chance explains how many units are on the challenger: the sample ratio, tested at any time as in Lindon &
    Malek, "Anytime-valid inference for multinomial count data", NeurIPS 2022, with the bets of `sequential`."""
    new = ~units.returning
    if not new.any():
        return True
    ones, zeros = np.ones(int(new.sum())), np.zeros(int(new.sum()))
    counts = estimate_effects(units.is_challenger[new], units.probability[new], ones, zeros, ones)
    evidence: Sequence[np.ndarray] = (counts.log_evidence_worse(0), counts.log_evidence_not_worse(0))
    return all(path.max() < -math.log(_ALPHA_ASSIGNMENT / 2) for path in evidence)


def _users(units: Units, chosen: np.ndarray) -> tuple[int, int]:
    """Units on the challenger and on the control."""
    on_challenger = int((units.is_challenger & chosen).sum())
    return on_challenger, int(chosen.sum()) - on_challenger

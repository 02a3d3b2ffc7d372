"""Held-out samples that are nearly the same: many of them are no more evidence than one."""

import numpy as np
import pytest

from components.benchmark.measurements import HeldoutLoss, Measurements
from components.benchmark.statistics import Bootstrap
from components.gate.checks import difference
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Check, Result
from tests.evidence import heldout, own_data

MARGIN = 0.02
BOOTSTRAP = Bootstrap(confidence=0.95, resamples=400, seed=0)


@pytest.mark.parametrize(
    ("groups", "of_each"),
    [(5, [52] * 5), (12, [21] * 12), (12, [100, 50, 25, *[9] * 9]), (29, [200, *[2] * 28]), (60, [4] * 60)],
)
def test_a_candidate_just_too_bad_seldom_passes_however_its_samples_cluster(groups, of_each):
    """At the margin itself, passing is the error: nominally 2.5%. Where samples count one by one it is the rule."""
    draws, group_of = np.random.default_rng(0), np.repeat(np.arange(groups), of_each)

    def passes(counted: list[int] | None) -> bool:
        differences = MARGIN + 0.05 * draws.normal(size=groups)[group_of] + 0.05 * draws.normal(size=len(group_of))
        zeros = [0.0] * len(group_of)
        found = difference("a", list(differences), zeros, "<=", MARGIN, min_n=1, bootstrap=BOOTSTRAP, groups=counted)
        return found.result is Result.PASS

    grouped, alone = (np.mean([passes(each) for _ in range(400)]) for each in (group_of.tolist(), None))
    assert grouped <= 0.045
    assert alone > 1.5 * grouped and (groups == 60 or alone > 0.15)


def test_a_candidate_that_is_better_in_every_group_passes():
    rng, group_of = np.random.default_rng(0), [i // 10 for i in range(100)]
    ours = [1.0 + 0.01 * rng.normal() for _ in group_of]
    found = difference("a", ours, [1.05] * 100, "<=", MARGIN, min_n=1, bootstrap=BOOTSTRAP, groups=group_of)
    assert found.result is Result.PASS and "(the samples come in 10 groups of nearly the same)" in found.reason


def test_samples_that_all_stand_alone_are_drawn_as_ever():
    values = [0.01 * (i % 7) for i in range(100)]
    drawn, counted = (
        difference("a", values, [0.0] * 100, "<=", MARGIN, min_n=1, bootstrap=BOOTSTRAP, groups=groups)
        for groups in (None, list(range(100)))
    )
    assert drawn == counted


def verdict_on(measured: Measurements, name: str) -> Check:
    verdict = judge(GateSettings(bootstrap_resamples=400), measured, "0" * 64)
    return next(check for check in verdict.checks if check.name == name)


def test_copies_of_one_picture_decide_nothing():
    ours, theirs = (heldout(loss, groups=[0] * 100) for loss in (0.5, 1.0))
    for groups in ([0] * 100, [0] * 99 + [1]):
        nearly = ours.model_copy(update={"groups": groups})
        found = verdict_on(own_data(nearly, theirs), "heldout_loss_vs_champion")
        assert found.result is Result.INCONCLUSIVE and "all samples, or nearly all, are of one group" in found.reason
    # By value: the frozen samples are what the bound speaks of. Rounding does not know how alike two pictures are.
    for name in ("heldout_loss_ratio", "heldout_loss_int8"):
        assert verdict_on(own_data(ours, theirs), name).result is Result.PASS


@pytest.mark.parametrize("noted", ["candidate", "champion"])
def test_a_package_that_is_older_than_groups_is_compared_by_those_of_the_other(noted):
    """They follow from the samples, which are the same."""
    rng, groups = np.random.default_rng(1), [i // 25 for i in range(100)]
    losses = [1.015 + each for each in np.repeat(0.02 * rng.normal(size=4), 25)]

    def arm(name: str, losses: list[float]) -> HeldoutLoss:
        return heldout(1.0, loss_per_sample=losses, groups=groups if name == noted else None)

    found = verdict_on(own_data(arm("candidate", losses), arm("champion", [1.0] * 100)), "heldout_loss_vs_champion")
    assert found.result is Result.INCONCLUSIVE and "in 4 groups" in found.reason

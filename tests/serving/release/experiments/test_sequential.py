"""The e-processes: unbiased estimates, rare false alarms, bounds that hold at all times, and alarms when due."""

import numpy as np
import pytest

from serving.release.experiments.sequential import Effects, estimate_effects, predictable_centre

TESTS, USERS = 300, 4000
ALPHA = 0.05


def bernoulli(rng: np.random.Generator, users: int, share: float, control: float, challenger: float) -> Effects:
    probability = np.full(users, share)
    treated = rng.random(users) < probability
    values = (rng.random(users) < np.where(treated, challenger, control)).astype(float)
    centre = predictable_centre(values, 0.0)
    return estimate_effects(treated, probability, values - centre, -centre, 1 - centre)


def simulated(seed: int, **options) -> list[Effects]:
    return [bernoulli(np.random.default_rng([seed, number]), **options) for number in range(TESTS)]


@pytest.mark.parametrize(("share", "control"), [(0.5, 0.3), (0.05, 0.3), (0.2, 0.01)])
def test_false_alarms_stay_below_alpha_whoever_looks_after_every_user(share, control):
    tests = simulated(1, users=USERS, share=share, control=control, challenger=control)
    bound = -np.log(ALPHA)
    for alarms in (
        sum(effects.log_evidence_worse(0.0).max() >= bound for effects in tests),
        sum(effects.log_evidence_not_worse(0.0).max() >= bound for effects in tests),
    ):
        assert alarms <= 24  # a rate of 5% exceeds it with a probability of 1%


def test_the_mean_wealth_is_at_most_the_stake():
    """Exactly: an e-process has a mean of at most 1 at any time. A formula that is wrong by a factor shows here."""
    tests = simulated(2, users=200, share=0.2, control=0.3, challenger=0.3)
    wealth = np.exp([effects.log_evidence_worse(0.0)[-1] for effects in tests])
    assert wealth.mean() <= 1 + 3 * wealth.std() / np.sqrt(TESTS)


def test_estimates_are_unbiased_at_any_share_and_centre():
    tests = simulated(3, users=2000, share=0.1, control=0.2, challenger=0.5)
    means = np.array([effects.mean for effects in tests])
    assert abs(means.mean() - 0.3) < 4 * means.std() / np.sqrt(TESTS)


def test_the_bounds_hold_at_all_times_together():
    missed = 0
    for effects in simulated(4, users=1000, share=0.3, control=0.2, challenger=0.25)[:150]:
        low, high = effects.at_least(ALPHA / 2, 1.0), effects.at_most(ALPHA / 2, 1.0)
        assert low < high
        missed += not low <= 0.05 <= high
    assert missed <= 14  # a rate of 5% exceeds it with a probability of 1%


def test_bounds_and_decisions_say_the_same():
    effects = bernoulli(np.random.default_rng(5), 4000, 0.5, 0.1, 0.2)
    low = effects.at_least(ALPHA, 1.0)
    assert effects.log_evidence_worse(low - 1e-3).max() >= -np.log(ALPHA) > effects.log_evidence_worse(low + 1e-3).max()
    assert 0 < low < 0.1 < effects.at_most(ALPHA, 1.0) < 0.25


def test_a_worse_arm_is_found_and_a_better_one_never():
    bound = -np.log(ALPHA)
    worse = simulated(6, users=USERS, share=0.5, control=0.05, challenger=0.1)
    better = simulated(7, users=USERS, share=0.5, control=0.1, challenger=0.05)
    assert sum(effects.log_evidence_worse(0.0).max() >= bound for effects in worse) >= 0.97 * TESTS
    assert sum(effects.log_evidence_worse(0.0).max() >= bound for effects in better) == 0


def test_an_arm_that_fails_late_is_found_soon():
    """10,000 users without a difference cost nothing but a factor: bettors who begin later still have their stakes."""
    rng = np.random.default_rng(8)
    early, late = (bernoulli(rng, users, 0.5, 0.01, rate) for users, rate in ((10_000, 0.01), (2_000, 0.2)))
    joined = Effects(*(np.concatenate([getattr(part, name) for part in (early, late)]) for name in vars(early)))
    alarm = np.flatnonzero(joined.log_evidence_worse(0.01) >= -np.log(ALPHA))
    assert 10_000 < alarm[0] < 10_600


@pytest.mark.parametrize(
    ("probability", "deviation"), [(0.5, np.nan), (0.5, 1.5), (0.5, -0.5), (0.0, 0.5), (1.0, 0.5), (np.nan, 0.5)]
)
def test_fault_18_what_is_missing_or_impossible_is_refused(probability, deviation):
    def two(value: float) -> np.ndarray:
        return np.array([0.5, value])

    with pytest.raises(ValueError, match=r"probability|missing"):
        estimate_effects(np.array([True, False]), two(probability), two(deviation), np.zeros(2), np.ones(2))


def test_a_centre_knows_nothing_of_its_own_unit():
    values = np.arange(2000.0)
    centre = predictable_centre(values, -7.0)
    assert centre[0] == -7.0 and centre[1] == 0.0 and centre[3] == 1.0
    assert centre[1999] == values[1499:1999].mean()

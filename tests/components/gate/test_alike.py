"""Arms that seldom or never differ: how alike that shows them to be."""

import numpy as np
import pytest

from components.benchmark.statistics import Bootstrap
from components.gate.checks import difference
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from tests.evidence import CAPTIONS, arm, measurements


def test_a_rare_failure_that_was_not_met_is_not_proven_absent():
    """A candidate that fails one caption more in a hundred, at a margin of one: passing it is the error, nominally 2.5%."""
    draws, bootstrap = np.random.default_rng(0), Bootstrap(confidence=0.95, resamples=400, seed=0)

    def passes(captions: int) -> bool:
        ours = (draws.random(captions) >= 0.01).astype(float).tolist()
        found = difference("a", ours, [1.0] * captions, ">=", -0.01, min_n=1, bootstrap=bootstrap, reach=1.0)
        return found.result is Result.PASS

    for captions in (300, 500, 746):
        assert np.mean([passes(captions) for _ in range(200)]) <= 0.06


def test_two_arms_that_never_differ_are_as_alike_as_their_number_of_captions_shows():
    bootstrap = Bootstrap(confidence=0.95, resamples=2000, seed=0)
    few, many = (bootstrap.mean([0.0] * captions, reach=1.0) for captions in (100, 1000))
    for found, captions in ((few, 100), (many, 1000)):
        assert 2 / captions <= found.high <= 4 / captions and found.low == pytest.approx(-found.high, rel=0.4)
    assert (
        bootstrap.mean([0.0] * 100).high == 0
    )  # a loss that is equal to the last bit was computed by the same numbers


@pytest.mark.parametrize(("scores", "margin", "result"), [
    ([1.0] * CAPTIONS, 1 / CAPTIONS, Result.INCONCLUSIVE),  # yes and no: a rare no may not have been met
    ([1.0] * CAPTIONS, 10 / CAPTIONS, Result.PASS),
    (np.linspace(0.1, 0.9, CAPTIONS).tolist(), 1 / CAPTIONS, Result.PASS),
])  # fmt: skip
def test_an_own_metric_of_yes_and_no_is_known_as_one(scores, margin, result):
    settings = GateSettings.model_validate({"bootstrap_resamples": 400, "metrics": {"own": {"margin": margin}}})
    arms = measurements(champion=arm("champion", 0.94, 6.0, seed=3))
    scored = {name: each.model_copy(update={"scores": {"own": scores}}) for name, each in arms.arms.items()}
    verdict = judge(settings, arms.model_copy(update={"arms": scored, "metrics": ["own"]}), "0" * 64)
    [found] = [check for check in verdict.checks if check.name == "own_vs_champion"]
    assert found.result is result, found.reason

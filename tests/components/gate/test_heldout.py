"""Without a judge: the held-out loss as the quality, and what it may be compared with."""

import pytest

from components.gate.verdict import Result
from tests.components.gate.test_gate import check, verdict_on
from tests.evidence import heldout, own_data


def test_without_a_judge_the_heldout_loss_is_the_quality():
    assert verdict_on(own_data(heldout(1.0), against=False)).result is Result.PASS
    assert verdict_on(own_data(heldout(5.4), against=False)).result is Result.FAIL  # no better than guessing
    assert verdict_on(own_data(heldout(1.0), heldout(1.0))).result is Result.PASS
    assert verdict_on(own_data(heldout(1.2), heldout(1.0))).result is Result.FAIL
    assert verdict_on(own_data(None, heldout(1.0))).result is Result.FAIL


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokenizers_digest": "9" * 64}, "other tokenizers"),
        ({"evaluation_digest": "9" * 64}, "another evaluation set"),
        ({"text_length": 24}, "another text_length"),
        ({"coarse_grid": (4, 16)}, "another grid of sketch tokens"),
        ({"fine_grid": (8, 32)}, "another grid of image tokens"),
        ({"samples_digest": "9" * 64}, "other held-out samples"),
        ({"masks_digest": "9" * 64}, "other masks"),
    ],
)
def test_losses_about_other_questions_are_incomparable(change, words):
    verdict = verdict_on(own_data(heldout(1.0), heldout(1.0, **change)))
    assert verdict.result is Result.INVALID
    compared = check(verdict, "heldout_loss_vs_champion")
    assert compared.value is None and words in compared.reason


def test_without_a_judge_int8_may_cost_no_more_than_its_bound():
    kept = check(verdict_on(own_data(heldout(1.004), full=heldout(1.0), against=False)), "heldout_loss_int8")
    assert kept.result is Result.PASS and kept.value == pytest.approx(0.004) and kept.n == 100
    assert kept.interval == pytest.approx((0.004, 0.004))
    verdict = verdict_on(own_data(heldout(1.03), full=heldout(1.0), against=False))
    assert verdict.result is Result.FAIL and "heldout_loss_int8" in verdict.reasons[0]


def test_a_cost_of_int8_that_may_lie_on_either_side_of_its_bound_is_inconclusive():
    scattered = heldout(1.0, loss_per_sample=[1.0 + 0.3 * (-1) ** i for i in range(100)])
    verdict = verdict_on(own_data(scattered, full=heldout(0.99), against=False))
    assert check(verdict, "heldout_loss_int8").result is Result.INCONCLUSIVE


@pytest.mark.parametrize(
    ("losses", "words"), [([], "missing"), ([1.0] * 31, "only 31 samples"), ([1.0, None], "finite")]
)
def test_fault_18_without_enough_pairs_the_cost_of_int8_is_not_shown(losses, words):
    same = heldout(1.0, loss_per_sample=losses)
    cost = check(verdict_on(own_data(same, full=same, against=False)), "heldout_loss_int8")
    assert cost.result is Result.FAIL and words in cost.reason

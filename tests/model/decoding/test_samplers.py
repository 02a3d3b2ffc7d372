"""The samplers draw what they say they draw."""

import numpy as np
import pytest

from model.decoding.samplers import guide, keep_top_k, keep_top_p, log_softmax, sample, streams
from model.decoding.schedule import known_after_step


def test_draws_follow_the_softmax():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    ids, _ = sample(np.broadcast_to(logits, (1, 40_000, 4)), 1.0, streams([7]))
    shares = np.bincount(ids[0], minlength=4) / ids.size
    # Four standard errors of a share over 40,000 draws are 0.01.
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.01


def test_temperature_sharpens():
    logits = np.broadcast_to(np.log(np.array([0.6, 0.4], dtype=np.float32)), (1, 20_000, 2))
    ids, _ = sample(logits, 0.5, streams([1]))
    assert abs((ids == 0).mean() - 0.36 / (0.36 + 0.16)) < 0.015


def test_zero_temperature_takes_the_most_likely():
    logits = np.random.default_rng(0).normal(size=(3, 5, 11)).astype(np.float32)
    ids, log_probabilities = sample(logits, 0.0, streams([0, 1, 2]))
    assert (ids == logits.argmax(-1)).all()
    assert np.allclose(log_probabilities, log_softmax(logits).max(-1))


def test_top_k_never_draws_below_the_k_largest():
    logits = np.random.default_rng(0).normal(size=(1, 2_000, 9)).astype(np.float32)
    ids, _ = sample(logits, 1.5, streams([3]), top_k=2)
    allowed = np.argsort(-logits, axis=-1)[..., :2]
    assert (allowed == ids[..., None]).any(-1).all()
    assert np.isfinite(keep_top_k(logits, 2)).sum(-1).max() == 2


@pytest.mark.parametrize("k", range(1, 9))
def test_top_k_keeps_k_of_equal_logits_those_of_lower_ids(k):
    logits = np.random.default_rng(0).integers(0, 4, size=(20, 3, 9)).astype(np.float32)
    logits[0] = -np.inf
    logits[0, :, 4] = 0  # one token may be drawn: the others stay out whatever k is
    found = keep_top_k(logits, k)
    likeliest = np.argsort(-logits, axis=-1, kind="stable")[..., :k]
    expected = np.full_like(logits, -np.inf)
    np.put_along_axis(expected, likeliest, np.take_along_axis(logits, likeliest, -1), -1)
    assert (found == expected).all() and found.dtype == np.float32
    assert (np.isfinite(found[1:]).sum(-1) == k).all()


def test_draws_of_equally_likely_tokens_are_of_k_of_them_alike():
    logits = np.broadcast_to(np.array([1, 0, 0, 1, 0, 0], dtype=np.float32), (1, 30_000, 6))
    ids, log_probabilities = sample(logits, 1.0, streams([7]), top_k=4)
    shares = np.bincount(ids[0], minlength=6) / ids.size
    expected = np.exp([1, 0, 0, 1]) / np.exp([1, 0, 0, 1]).sum()
    assert np.abs(shares[:4] - expected).max() < 0.012  # four standard errors
    assert shares[4:].tolist() == [0, 0]
    np.testing.assert_allclose(np.exp(log_probabilities[0]), expected[ids[0]], rtol=1e-5)


def test_an_image_does_not_depend_on_its_batch():
    logits = np.random.default_rng(0).normal(size=(1, 64, 32)).astype(np.float32)
    alone, _ = sample(logits, 1.0, streams([5]))
    together, _ = sample(np.repeat(logits, 3, 0), 1.0, streams([9, 5, 1]))
    assert (together[1] == alone[0]).all()
    assert (together[0] != alone[0]).any()


@pytest.mark.parametrize("steps", [1, 2, 4, 24, 64])
def test_schedule_ends_with_everything_known_and_never_falls(steps):
    known = [known_after_step(step, steps, 64) for step in range(steps)]
    assert known == sorted(known)
    assert known[0] >= 1
    assert known[-1] == 64


def test_schedule_refuses_a_step_outside_its_range():
    with pytest.raises(ValueError, match="outside"):
        known_after_step(4, 4, 64)


LOGITS = np.log(np.array([[0.5, 0.05, 0.3, 0.15]], dtype=np.float32))


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [(1.0, [0, 1, 2, 3]), (0.96, [0, 1, 2, 3]), (0.9, [0, 2, 3]), (0.79, [0, 2]), (0.4, [0]), (0.0, [0])],
)
def test_the_nucleus_is_the_smallest_set_that_is_probable_enough(top_p, kept):
    found = keep_top_p(LOGITS, top_p)
    assert np.flatnonzero(np.isfinite(found[0])).tolist() == kept
    assert (found[0][kept] == LOGITS[0][kept]).all()


def test_equally_likely_tokens_share_the_nucleus_by_their_order():
    assert np.isfinite(keep_top_p(np.zeros((1, 8), np.float32), 0.5))[0].tolist() == [True] * 4 + [False] * 4


def test_draws_from_a_nucleus_are_distributed_as_its_probabilities():
    count = 20_000
    ids, _ = sample(np.repeat(LOGITS, count, 0)[:, None], 1.0, streams(list(range(count))), top_p=0.79)
    shares = np.bincount(ids[:, 0], minlength=4) / count
    np.testing.assert_allclose(shares, [0.625, 0, 0.375, 0], atol=4 * (0.625 * 0.375 / count) ** 0.5)


def test_top_p_is_taken_of_what_top_k_left():
    ids, _ = sample(np.repeat(LOGITS, 500, 0)[:, None], 1.0, streams(list(range(500))), top_k=2, top_p=0.9)
    assert set(ids[:, 0].tolist()) == {0, 2}
    ids, _ = sample(np.repeat(LOGITS, 500, 0)[:, None], 1.0, streams(list(range(500))), top_k=2, top_p=0.6)
    assert set(ids[:, 0].tolist()) == {0}


def test_guidance_moves_from_the_unconditional_to_the_conditional_distribution_and_beyond():
    given, free = LOGITS + 3, np.zeros((1, 4), np.float32) - 2
    np.testing.assert_allclose(guide(given, free, 1.0), log_softmax(given), atol=1e-6)
    np.testing.assert_allclose(guide(given, free, 0.0), log_softmax(free), atol=1e-6)
    strong = np.exp(log_softmax(guide(given, free, 3.0)))[0]
    expected = np.array([0.5, 0.05, 0.3, 0.15]) ** 3  # against a uniform distribution guidance is a power
    np.testing.assert_allclose(strong, expected / expected.sum(), rtol=1e-4)

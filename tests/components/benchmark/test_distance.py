"""The Fréchet distance, where the answer is known, and its error."""

import numpy as np
import pytest

from components.benchmark.distance import Gaussian, frechet


def gaussian(mean, covariance) -> Gaussian:
    return Gaussian(np.array(mean, dtype=float), np.array(covariance, dtype=float))


def test_the_frechet_distance_of_known_gaussians():
    unit = gaussian([0, 0], np.eye(2))
    assert unit.distance(unit) == pytest.approx(0, abs=1e-9)
    assert unit.distance(gaussian([3, 4], np.eye(2))) == pytest.approx(25)
    # Of one dimension each: (s1 - s2)^2, summed.
    assert unit.distance(gaussian([0, 0], np.diag([9.0, 4.0]))) == pytest.approx((1 - 3) ** 2 + (1 - 2) ** 2)
    turned = gaussian([0, 0], [[2, 1], [1, 2]])
    assert unit.distance(turned) == pytest.approx(turned.distance(unit))


def drawn(seed: int, *, shift: float = 0.0, spread: float = 1.0) -> np.ndarray:
    """Features of 3 seeds of 200 captions."""
    random = np.random.default_rng(seed)
    own = random.normal(size=(200, 6))
    return np.concatenate([own + random.normal(size=own.shape) for _ in range(3)]) * spread + shift


def test_the_draws_of_arms_are_paired_and_spread_as_other_samples_do():
    real = drawn(0)
    arms = {"same": drawn(1), "again": drawn(1), "shifted": drawn(1, shift=0.5), "alike": drawn(1, spread=0.5)}
    found = frechet(arms, real, 200, space="features", resamples=100, seed=0)
    assert found["same"] == found["again"] and len(found["same"].draws) == 100
    assert found["shifted"].value == pytest.approx(found["same"].value + 6 * 0.25, abs=0.7)
    assert found["alike"].value == pytest.approx(6 * 0.5, abs=0.7)  # (2 ** .5 - 2 ** .5 / 2) ** 2 in six dimensions
    ratios = np.log(found["shifted"].draws) - np.log(found["same"].draws)
    assert ratios.std() < np.log(found["same"].draws).std()
    others = [frechet({"x": drawn(seed, shift=0.5)}, real, 200, space="", resamples=20, seed=0)["x"].value
              for seed in range(2, 42)]  # fmt: skip
    assert np.std(found["shifted"].draws) == pytest.approx(np.std(others), rel=0.5)

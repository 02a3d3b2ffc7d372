"""The Fréchet distance of generated images to real ones, in a space of features, with its sampling error.

Heusel et al. 2017 ("GANs Trained by a Two Time-Scale Update Rule ..."), equation 6. It sees what no reading of single
images does: that they are all alike, or of another kind than the real ones. A distance falls with the number of images
alone (Bińkowski et al. 2018), so only distances of equally many images, to the same real ones, can be compared.
"""

from dataclasses import dataclass

import numpy as np

from components.benchmark.measurements import Frechet


@dataclass(frozen=True)
class Gaussian:
    """Mean [features] and covariance [features, features] of images' features."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Gaussian":
        """Of features [images, features]."""
        wide = features.astype(np.float64)
        return cls(wide.mean(0), np.cov(wide, rowvar=False))

    def distance(self, other: "Gaussian") -> float:
        """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))."""
        return RealImages(other).distance(self)


class RealImages:
    """What generated images are compared with; its root is taken once."""

    def __init__(self, gaussian: Gaussian):
        values, vectors = np.linalg.eigh(gaussian.covariance)
        self._gaussian = gaussian
        self._root = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T

    def distance(self, generated: Gaussian) -> float:
        # tr((C1 C2)^(1/2)) = sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric.
        real = self._gaussian
        product = np.linalg.eigvalsh(self._root @ generated.covariance @ self._root)
        between = np.sum((real.mean - generated.mean) ** 2)
        spread = np.trace(real.covariance) + np.trace(generated.covariance) - 2 * np.sqrt(product.clip(min=0)).sum()
        return float(between + spread)


def frechet(
    features: dict[str, np.ndarray], real: np.ndarray, captions: int, *, space: str, resamples: int, seed: int
) -> dict[str, Frechet]:
    """The distance of each arm to the `real` images' features, by name.

    `features` float [seeds * captions, features] of each arm, all captions with their first seed, then with their
    second. Captions are resampled, the same ones for every arm, so that the draws of two arms can be paired.
    """
    target, random = RealImages(Gaussian.of(real)), np.random.default_rng(seed)
    chosen = [random.integers(0, captions, captions) for _ in range(resamples)]
    found = {}
    for name, seen in features.items():
        by_seed = seen.reshape(-1, captions, seen.shape[-1])
        draws = [target.distance(Gaussian.of(by_seed[:, rows].reshape(-1, seen.shape[-1]))) for rows in chosen]
        found[name] = Frechet(space=space, value=target.distance(Gaussian.of(seen)), draws=draws)
    return found

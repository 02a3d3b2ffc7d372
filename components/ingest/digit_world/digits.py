"""Real handwritten digits, split once and for all into those that make scenes, train the judge, and test.

The images are scikit-learn's `load_digits` (UCI Optical Recognition of Handwritten Digits, CC BY 4.0).
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

GENERATION_DIGITS = 1100
JUDGE_DIGITS = 400
LICENSE = "CC-BY-4.0"
_SPLIT_SEED = 0

Split = Literal["generation", "judge", "test"]


@dataclass(frozen=True)
class Digits:
    """`images` float32 [n, 8, 8] in 0..1, `labels` int64 [n] in 0..9, `indices` int64 [n] into `load_digits`."""

    images: np.ndarray
    labels: np.ndarray
    indices: np.ndarray


@cache
def load_split(split: Split) -> Digits:
    """The digits of one split: 1,100 generation, 400 judge, 297 test. No digit is in two of them; no seed moves one."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(images))
    bounds = {
        "generation": (0, GENERATION_DIGITS),
        "judge": (GENERATION_DIGITS, GENERATION_DIGITS + JUDGE_DIGITS),
        "test": (GENERATION_DIGITS + JUDGE_DIGITS, len(images)),
    }
    chosen = order[slice(*bounds[split])]
    return Digits(
        images=(np.asarray(images)[chosen] / 16.0).astype(np.float32).reshape(-1, 8, 8),
        labels=np.asarray(labels, dtype=np.int64)[chosen],
        indices=chosen.astype(np.int64),
    )

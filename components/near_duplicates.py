"""Pictures that are nearly the same: their small thumbnails differ by little.

Two pictures are near-duplicates when the root-mean-square difference of their 16x16 RGB thumbnails is below a number
of grey levels. That finds copies that were re-encoded, resized or brightened a little; it does not find crops.
"""

from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIDE = 16
THUMBNAIL_VALUES = _SIDE * _SIDE * 3
_ROWS_PER_BLOCK = 512
_CANDIDATES_PER_BLOCK = 2048
_SORTING_SLACK = 1.0  # for the rounding of a projection in float32


def thumbnail(pixels: Image.Image) -> np.ndarray:
    """uint8 [768]: the mean colours of a 16x16 grid over an RGB image."""
    small = pixels.reduce(factor) if (factor := min(pixels.size) // (2 * _SIDE)) > 1 else pixels
    return np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)


def near_pairs(first: np.ndarray, second: np.ndarray, rms: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every pair whose thumbnails (uint8 [n, 768]) differ by less than `rms` grey levels, in blocks.

    Yields equally long row numbers of `first` and of `second`. Exact: both are sorted along the direction of largest
    spread, pictures that differ there by more than the radius are never compared, and the others by integers.
    """
    if not len(first) or not len(second) or rms <= 0:
        return
    radius = rms * THUMBNAIL_VALUES**0.5
    axis = _spread_direction(second)
    first_at, second_at = first @ axis, second @ axis
    first_order, second_order = np.argsort(first_at, kind="stable"), np.argsort(second_at, kind="stable")
    sorted_at = second_at[second_order]
    for start in range(0, len(first), _ROWS_PER_BLOCK):
        rows = first_order[start : start + _ROWS_PER_BLOCK]
        low = int(np.searchsorted(sorted_at, first_at[rows[0]] - radius - _SORTING_SLACK))
        high = int(np.searchsorted(sorted_at, first_at[rows[-1]] + radius + _SORTING_SLACK))
        for part in range(low, high, _CANDIDATES_PER_BLOCK):
            candidates = second_order[part : min(part + _CANDIDATES_PER_BLOCK, high)]
            i, j = np.nonzero(_squared_distances(first[rows], second[candidates]) < radius**2)
            if len(i):
                yield rows[i], candidates[j]


def _spread_direction(thumbnails: np.ndarray) -> np.ndarray:
    """A unit vector along which the thumbnails differ most: float32 [768]. Any unit vector is correct, this one is fast."""
    some = thumbnails[:: max(1, len(thumbnails) // 1000)].astype(np.float32)
    centred = some - some.mean(axis=0)
    axis = np.ones(THUMBNAIL_VALUES, dtype=np.float32)
    for _ in range(8):  # power iteration
        axis = centred.T @ (centred @ axis)
        norm = float(np.linalg.norm(axis))
        if norm == 0:
            return np.full(THUMBNAIL_VALUES, THUMBNAIL_VALUES**-0.5, dtype=np.float32)
        axis /= norm
    return axis


def _squared_distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """int64 [n, m], exact: centred on 128, a dot product of 768 values stays below 2^24, where float32 holds integers."""
    a, b = first.astype(np.float32) - 128, second.astype(np.float32) - 128
    products = (a @ b.T).astype(np.int64)
    return (a**2).sum(1).astype(np.int64)[:, None] + (b**2).sum(1).astype(np.int64)[None, :] - 2 * products

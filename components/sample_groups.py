"""Groups of samples that must stay on one side: same content, same caption, nearly the same picture."""

from collections.abc import Hashable, Sequence

import numpy as np

from components.near_duplicates import near_pairs


class UnionFind:
    """Disjoint sets over 0..count-1, each named by its smallest member."""

    def __init__(self, count: int):
        self._parent = list(range(count))

    def find(self, item: int) -> int:
        while self._parent[item] != item:
            self._parent[item] = self._parent[self._parent[item]]
            item = self._parent[item]
        return item

    def unite(self, first: int, second: int) -> None:
        low, high = sorted((self.find(first), self.find(second)))
        self._parent[high] = low


def group_samples(
    contents: Sequence[str], captions: Sequence[str] | None, thumbnails: np.ndarray, near_duplicate_rms: float
) -> list[list[int]]:
    """The groups of row numbers, joined through any chain of equal contents, equal captions and near pictures.

    `thumbnails` is uint8 [rows, 768]; `captions` None leaves captions out. Groups and their rows are in row order.
    """
    sets = UnionFind(len(contents))
    _unite_equal(sets, contents)
    if captions is not None:
        _unite_equal(sets, captions)
    if near_duplicate_rms > 0:
        _unite_pictures(sets, thumbnails, near_duplicate_rms)
    groups: dict[int, list[int]] = {}
    for row in range(len(contents)):
        groups.setdefault(sets.find(row), []).append(row)
    return list(groups.values())


def _unite_pictures(sets: UnionFind, thumbnails: np.ndarray, rms: float) -> None:
    """Equal thumbnails first, so that many blank pictures do not become a square of pairs; then the near ones."""
    keys = [thumbnail.tobytes() for thumbnail in thumbnails]
    _unite_equal(sets, keys)
    distinct = np.array(sorted({key: row for row, key in reversed(list(enumerate(keys)))}.values()), dtype=np.int64)
    for first, second in near_pairs(thumbnails[distinct], thumbnails[distinct], rms):
        for one, other in zip(distinct[first].tolist(), distinct[second].tolist(), strict=True):
            sets.unite(one, other)


def _unite_equal(sets: UnionFind, keys: Sequence[Hashable]) -> None:
    first_with: dict[Hashable, int] = {}
    for row, key in enumerate(keys):
        sets.unite(first_with.setdefault(key, row), row)

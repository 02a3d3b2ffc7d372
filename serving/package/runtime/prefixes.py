"""What was read of the prompts that were asked for last, so that one which comes again is not read again."""

from collections import OrderedDict

import numpy as np

Known = tuple[np.ndarray, ...]
"""What one prompt says, however its images are drawn: keys and values, and where its plan starts from."""


class PrefixCache:
    """As many prompts as fit `largest_bytes`; the one that was not asked for the longest goes first.

    For one caller at a time, as the session that owns it.
    """

    def __init__(self, largest_bytes: int):
        """`largest_bytes` 0 keeps nothing."""
        self._largest_bytes, self._bytes = largest_bytes, 0
        self._known: OrderedDict[bytes, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    @property
    def kept_bytes(self) -> int:
        """Of the arrays and the keys that are kept."""
        return self._bytes

    def get(self, key: bytes) -> Known | None:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
        return known

    def put(self, key: bytes, known: Known) -> None:
        """Keep `known`, whose arrays nobody changes any more, under a `key` that is not there yet."""
        self._known[key] = known
        self._bytes += _bytes(key, known)
        while self._bytes > self._largest_bytes:
            self._bytes -= _bytes(*self._known.popitem(last=False))


def _bytes(key: bytes, known: Known) -> int:
    return len(key) + sum(array.nbytes for array in known)

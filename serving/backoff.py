"""When to try a package again that was refused."""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass

_MOST_DOUBLINGS = 30


@dataclass(frozen=True)
class Backoff:
    """The pause after each failure in a row: `first_s` seconds, then twice as long each time, up to `longest_s`."""

    first_s: float = 5.0
    longest_s: float = 300.0

    def pause_s(self, failures: int) -> float:
        """Seconds to wait after the failure with this number, counted from 1."""
        return min(self.longest_s, self.first_s * 2 ** min(failures - 1, _MOST_DOUBLINGS))


@dataclass(frozen=True)
class _Refusal:
    failures: int
    due: float


class Refusals:
    """The packages that could not be served, by digest, and when each is due again."""

    def __init__(self, backoff: Backoff):
        self._backoff = backoff
        self._by_digest: dict[str, _Refusal] = {}

    def due(self, digest: str) -> bool:
        """Whether `digest` may be tried now: it was not refused, or its pause is over."""
        refusal = self._by_digest.get(digest)
        return refusal is None or time.monotonic() >= refusal.due

    def add(self, digest: str) -> float:
        """Note a failure; returns the seconds until `digest` is due again."""
        known = self._by_digest.get(digest)
        failures = known.failures + 1 if known else 1
        pause_s = self._backoff.pause_s(failures)
        self._by_digest[digest] = _Refusal(failures, time.monotonic() + pause_s)
        return pause_s

    def ban(self, digest: str) -> None:
        """Never try `digest` again, as long as it is kept."""
        self._by_digest[digest] = _Refusal(failures=1, due=math.inf)

    def keep(self, digests: Collection[str | None]) -> None:
        """Forget every package but these: one that is wanted anew is tried at once."""
        self._by_digest = {digest: refusal for digest, refusal in self._by_digest.items() if digest in digests}

    def forget(self, digest: str) -> None:
        """Note that `digest` serves."""
        self._by_digest.pop(digest, None)

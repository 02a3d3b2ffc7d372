"""Whether work that was taken goes on: what a supervisor asks for, which cannot see into this process."""

import threading
import time
from collections.abc import Callable


class Progress:
    """How much is under way, and how long ago any of it moved; safe to use from any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """`now` gives seconds."""
        self._now, self._lock = now, threading.Lock()
        self._under_way, self._moved_at = 0, now()

    @property
    def under_way(self) -> int:
        return self._under_way

    def begin(self) -> None:
        """A request was taken. Its coming moves none of those before it."""
        with self._lock:
            if self._under_way == 0:
                self._moved_at = self._now()
            self._under_way += 1

    def move(self) -> None:
        """A stage was drawn, or sent."""
        with self._lock:
            self._moved_at = self._now()

    def end(self) -> None:
        """A request has its last answer."""
        with self._lock:
            self._under_way -= 1
            self._moved_at = self._now()

    def still_s(self) -> float:
        """Seconds in which nothing moved although something is under way; 0 where nothing is."""
        with self._lock:
            return self._now() - self._moved_at if self._under_way else 0.0

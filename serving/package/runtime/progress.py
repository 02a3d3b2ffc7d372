"""Whether work that was taken goes on: what a supervisor asks for, which cannot see into this process."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """How much is under way, and how long ago any of it moved; safe to use from any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic):
        """`now` gives seconds."""
        self._now, self._lock = now, threading.Lock()
        self._under_way, self._drawing, self._moved_at = 0, False, now()

    @property
    def under_way(self) -> int:
        """Requests that have no last answer yet."""
        return self._under_way

    def begin(self) -> None:
        """A request was taken. Its coming moves none of those before it."""
        with self._lock:
            if not self._is_at_work:
                self._moved_at = self._now()
            self._under_way += 1

    def move(self) -> None:
        """A stage was drawn, or sent."""
        with self._lock:
            self._moved_at = self._now()

    def end(self) -> None:
        """A request has its last answer. That moves nothing: it may be a refusal, for which nothing was drawn."""
        with self._lock:
            self._under_way -= 1

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Around the drawing of a group, which is work until it ends: also where all who asked for it were refused meanwhile,
        and others come and are refused."""
        self._set_drawing(True)
        try:
            yield
        finally:
            self._set_drawing(False)

    def still_s(self) -> float:
        """Seconds in which nothing moved although something is under way; 0 where nothing is."""
        with self._lock:
            return self._now() - self._moved_at if self._is_at_work else 0.0

    @property
    def _is_at_work(self) -> bool:
        return self._drawing or self._under_way > 0

    def _set_drawing(self, drawing: bool) -> None:
        with self._lock:
            self._drawing, self._moved_at = drawing, self._now()

"""Requests that wait are answered together: one thread takes what has come and is alike, up to a largest group.

Nothing waits for company. A request that finds the thread idle is taken at once; those that come while it is at work
form the next groups. No more than a largest number wait: who asks for more than can be drawn is told so at once, and
what waits is never older, nor larger in memory, than the bound allows.
"""

import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Job = TypeVar("Job")


class QueueFull(Exception):
    """As many jobs wait as may."""


class Groups(Generic[Job]):
    """Jobs in, groups of them out, in the order of their coming; safe to call from any thread."""

    def __init__(
        self,
        answer: Callable[[list[Job]], None],
        kind: Callable[[Job], Hashable],
        *,
        largest: int,
        largest_queue: int,
        wanted: Callable[[Job], bool] = lambda job: True,
    ):
        """`answer` is given jobs of one `kind`, `largest` at most, by a thread that begins now. It must not raise.

        Up to `largest_queue` jobs wait; those that are not `wanted` any more make room for others.
        """
        self._answer, self._kind, self._largest = answer, kind, largest
        self._largest_queue, self._wanted = largest_queue, wanted
        self._waiting: deque[Job] = deque()
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="groups", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        """Raises `QueueFull`, and `RuntimeError` once closed."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the groups are closed")
            if len(self._waiting) >= self._largest_queue:
                self._waiting = deque(filter(self._wanted, self._waiting))
                if len(self._waiting) >= self._largest_queue:
                    raise QueueFull(f"{len(self._waiting)} requests wait already")
            self._waiting.append(job)
            self._changed.notify()

    def close(self) -> None:
        """Return when all that waited is answered."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while group := self._next():
            self._answer(group)

    def _next(self) -> list[Job]:
        """The oldest job and those like it; empty when closed and all are answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            kind, group, others = self._kind(self._waiting[0]), [], deque()
            while self._waiting and len(group) < self._largest:
                job = self._waiting.popleft()
                (group if self._kind(job) == kind else others).append(job)
            self._waiting.extendleft(reversed(others))
            return group

"""Looks at what is under way from time to time, in a thread of its own, until there is nothing more to see.

Asking Triton whether a caller has gone takes a tenth of a millisecond and more, each time: too much for those who draw,
at each of whose images nearly every caller is still there.
"""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


class Watch(Generic[Job]):
    """Jobs that are looked at every `every_s` seconds until they are removed; safe to use from any thread."""

    def __init__(
        self, look: Callable[[Job], bool], *, every_s: float, failed: Callable[[Job, Exception], None] = lambda *_: None
    ):
        """`look` says whether to look again. Where it raises, `failed` is told, and that job alone is looked at no more;
        `failed` must not raise."""
        self._look, self._every_s, self._failed = look, every_s, failed
        self._jobs: set[Job] = set()
        self._changed, self._closed = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        with self._changed:
            self._jobs.add(job)
            self._changed.notify()

    def remove(self, job: Job) -> None:
        with self._changed:
            self._jobs.discard(job)

    def close(self) -> None:
        """Look at nothing any more."""
        self._closed.set()
        with self._changed:
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._closed.is_set())
                jobs = set(self._jobs)
            if self._closed.wait(self._every_s):
                return
            for job in jobs:
                if job in self._jobs and not self._look_again(job):  # it may be done since
                    self.remove(job)

    def _look_again(self, job: Job) -> bool:
        try:
            return self._look(job)
        except Exception as error:  # noqa: BLE001 - the others' callers and deadlines are still to be looked at
            self._failed(job, error)
            return False

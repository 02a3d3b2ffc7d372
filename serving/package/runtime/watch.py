"""Looks at what is under way from time to time, in a thread of its own, until there is nothing more to see.

Asking Triton whether a caller has gone takes a tenth of a millisecond and more, each time: too much for those who draw,
at each of whose images nearly every caller is still there. Of hundreds that wait it would take most of a core, which the
images need then: a queue that was full once would stay so.
"""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Job = TypeVar("Job", bound=Hashable)


class Watch(Generic[Job]):
    """Jobs that are looked at again and again until they are removed; safe to use from any thread."""

    def __init__(
        self,
        look: Callable[[Job], bool],
        *,
        every_s: float,
        glance: Callable[[Job], bool] = lambda job: True,
        share: float = 0.1,
        failed: Callable[[Job, Exception], None] = lambda *_: None,
    ):
        """Every `every_s` seconds `glance` is asked about every job, and `look`, which may take long, about as many of them as
        `share` of the time allows, in turn; both say whether to look again. Where one raises, `failed` is told, and that
        job alone is looked at no more; `failed` must not raise."""
        self._look, self._glance, self._failed = look, glance, failed
        self._every_s, self._looking_s = every_s, share * every_s
        self._jobs: dict[Job, None] = {}
        """In the order of their turns."""
        self._changed, self._closed = threading.Condition(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="watch", daemon=True)
        self._thread.start()

    def add(self, job: Job) -> None:
        with self._changed:
            self._jobs[job] = None
            self._changed.notify()

    def remove(self, job: Job) -> None:
        with self._changed:
            self._jobs.pop(job, None)

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
                jobs = list(self._jobs)  # none that comes after the pause began
            if self._closed.wait(self._every_s):
                return
            for job in jobs:
                self._ask(self._glance, job)
            self._look_in_turn(len(jobs))

    def _look_in_turn(self, most: int) -> None:
        end = time.perf_counter() + self._looking_s
        for _ in range(most):
            with self._changed:
                if not self._jobs:
                    return
                job = next(iter(self._jobs))
                self._jobs[job] = self._jobs.pop(job)  # to the end
            self._ask(self._look, job)
            if time.perf_counter() > end:
                return

    def _ask(self, question: Callable[[Job], bool], job: Job) -> None:
        if job not in self._jobs:  # it may be done since
            return
        try:
            again = question(job)
        except Exception as error:  # noqa: BLE001 - the others' callers and deadlines are still to be looked at
            self._failed(job, error)
            again = False
        if not again:
            self.remove(job)

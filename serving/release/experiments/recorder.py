"""Writes events beside the requests: a request never waits for the database, nor fails with it."""

import logging
import threading
from collections import deque
from types import TracebackType
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from common.redaction import redact_text
from serving.backoff import Backoff
from serving.release.experiments.events import Event, EventStore
from serving.release.experiments.experiment import Experiment

log = logging.getLogger(__name__)

_BATCH = 500


class Recorder:
    """Appends events to `store` in batches, from a thread of its own.

    At most `capacity` events wait; one that finds no room is counted in `lost` and named in the log. While the store
    cannot be written, a batch is tried again and again.
    """

    def __init__(
        self,
        store: EventStore,
        experiment: Experiment,
        *,
        capacity: int = 10_000,
        every_s: float = 0.2,
        retry: Backoff | None = None,
    ):
        self._store, self._experiment, self._capacity, self._every_s = store, experiment, capacity, every_s
        self._retry = retry or Backoff(first_s=0.5, longest_s=30)
        self._waiting: deque[Event] = deque()
        self._writing = 0
        """Events of the batch that the thread has taken."""
        self._lost = 0
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._urgent = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outcome-recorder", daemon=True)
        self._thread.start()

    @property
    def arms(self) -> list[str]:
        """Whose outcomes it takes."""
        return [arm.name for arm in self._experiment.arms]

    @property
    def lost(self) -> int:
        """Events that were not written and never will be."""
        with self._changed:
            return self._lost

    def record(self, event: Event) -> bool:
        """Take an event up; whether there was room. Raises `UsageError` for an arm that the experiment has not."""
        self._experiment.arm(event.assignment.arm)
        with self._changed:
            room = len(self._waiting) + self._writing < self._capacity and not self._closing.is_set()
            if room:
                self._waiting.append(event)
            else:
                self._lost += 1
            first_loss = self._lost == 1 and not room
        if first_loss:
            log.error("an outcome is lost: %d events wait and the store does not take them", self._capacity)
        return room

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until everything that was taken is written; whether it was in time."""
        self._urgent.set()
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, timeout_s)

    def close(self, timeout_s: float = 10.0) -> int:
        """Write what waits, for at most so long. Returns how many events were lost in all; what is not written counts."""
        self.flush(timeout_s)
        self._closing.set()
        self._urgent.set()
        self._thread.join(timeout_s)
        with self._changed:
            left = len(self._waiting) + self._writing
            self._lost += left
            self._waiting.clear()
        if left:
            log.error("%d outcomes are lost: the store did not take them before the end", left)
        return self.lost

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            self._urgent.wait(self._every_s)
            self._urgent.clear()
            while batch := self._take():
                if not self._write(batch):
                    return
            if self._closing.is_set():
                return

    def _take(self) -> list[Event]:
        with self._changed:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            self._writing = len(batch)
            return batch

    def _write(self, batch: list[Event]) -> bool:
        """Until it is written; False where the recorder closes before that."""
        failures = 0
        while True:
            try:
                self._store.write(batch, again=failures > 0)
                break
            except (SQLAlchemyError, OSError) as error:
                failures += 1
                if failures == 1:
                    log.error("outcomes cannot be written and wait: %s", redact_text(str(error)))
                if self._closing.wait(self._retry.pause_s(failures)):
                    return False
        with self._changed:
            self._writing = 0
            self._changed.notify_all()
        return True

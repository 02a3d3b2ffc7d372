"""Does something again and again beside the requests, through every fault of what it needs."""

import logging
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from common.redaction import redact_text

log = logging.getLogger(__name__)


class Poller:
    """Calls `task` every `every_s` seconds, from a thread of its own, until it is closed.

    The log says once that it fails, and once that it works again.
    """

    def __init__(self, task: Callable[[], object], every_s: float, what: str):
        self._task, self._every_s, self._what = task, every_s, what
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self._task()
            except Exception as error:  # noqa: BLE001 - whatever a database driver raises, it is tried again
                if not self._failing:
                    log.error("%s fails and is tried again: %s", self._what, redact_text(str(error)))
                self._failing = True
                continue
            if self._failing:
                log.warning("%s works again", self._what)
            self._failing = False

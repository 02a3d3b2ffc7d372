"""Answers are sent by a thread of their own, in order: who draws the next stage does not wait until one has left.

Sending takes Triton's attention, not the processor's: it costs a preview half a millisecond in which the image's details
can be drawn.
"""

import queue
import threading
from collections.abc import Callable

Send = Callable[[], None]


class Outbox:
    """Calls what is put into it, one after the other; safe to use from any thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Send | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, send: Send) -> None:
        """`send` must not raise."""
        self._waiting.put(send)

    def close(self) -> None:
        """Return when all that was put before is sent."""
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (send := self._waiting.get()) is not None:
            send()

"""How much memory a run takes: the proportional set size of all its processes together."""

import contextlib
import threading
from collections.abc import Callable

import psutil

_INTERVAL_S = 1.0


class MemorySampler:
    """Samples this process and its descendants in a thread; `peak_mb` is the most that was seen (MiB).

    `elsewhere` names one more process at each moment, whose descendants count, too: a container's first one.
    """

    def __init__(self, elsewhere: Callable[[], int | None] = lambda: None) -> None:
        self.peak_mb = 0.0
        self._elsewhere = elsewhere
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-sampler", daemon=True)

    def __enter__(self) -> "MemorySampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while not self._stopped.wait(_INTERVAL_S):
            self.peak_mb = max(self.peak_mb, used_mb(self._elsewhere()))


def used_mb(elsewhere: int | None = None) -> float:
    """MiB that this process and process `elsewhere`, each with its descendants, use now; shared pages count once."""
    total, roots = 0, [psutil.Process()]
    with contextlib.suppress(psutil.Error):
        roots += [psutil.Process(elsewhere)] if elsewhere else []
    for root in roots:
        with contextlib.suppress(psutil.Error):
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    total += process.memory_full_info().pss
    return total / 2**20

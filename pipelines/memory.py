"""How much memory a run takes: the proportional set size of all its processes together."""

import contextlib
import threading

import psutil

_INTERVAL_S = 1.0


class MemorySampler:
    """Samples this process and its descendants in a thread; `peak_mb` is the most that was seen (MiB)."""

    def __init__(self) -> None:
        self.peak_mb = 0.0
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
            self.peak_mb = max(self.peak_mb, used_mb())


def used_mb() -> float:
    """MiB that this process and all its descendants use now; shared pages are counted once."""
    me = psutil.Process()
    total = 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20

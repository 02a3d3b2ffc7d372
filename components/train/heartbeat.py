"""What each rank is at, in a folder that all ranks see: when one hangs, the others can say which.

A rank that waits for another knows only that it waited too long. So each writes down what it begins, and a thread of it
renews that once a second; the one that is behind the others, or whose sign of life is old, is the one that hangs.
"""

import threading
import time
from pathlib import Path

from common.files import read_json, write_json

_EVERY_S = 1.0
_OLD_S = 5.0


class Heartbeat:
    """The sign of life of one rank."""

    def __init__(self, folder: Path, rank: int):
        self._folder, self._rank = folder, rank
        self._step, self._phase = 0, "starting"
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int, phase: str) -> None:
        """This rank begins the `phase` of a step (`data`, `step`)."""
        self._step, self._phase = step, phase

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        (self._folder / str(self._rank)).unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._ended.wait(_EVERY_S):
            self._write()

    def _write(self) -> None:
        content = {"step": self._step, "phase": self._phase, "at": time.time()}
        write_json(self._folder / str(self._rank), content)

    def who_hangs(self, ranks: int) -> str:
        """Which ranks keep the others waiting, as far as their signs of life tell."""
        self._write()
        now, signs = time.time(), {}
        for rank in range(ranks):
            try:
                signs[rank] = read_json(self._folder / str(rank))
            except (OSError, ValueError):
                return f"rank {rank} has ended"
        silent = [rank for rank, sign in signs.items() if now - sign["at"] > _OLD_S]
        if silent:
            return "; ".join(
                f"rank {rank} has given no sign of life for {now - signs[rank]['at']:.0f} s" for rank in silent
            )
        order = {"starting": 0, "data": 1, "step": 2}
        first = min((sign["step"], order[sign["phase"]]) for sign in signs.values())
        behind = [rank for rank, sign in signs.items() if (sign["step"], order[sign["phase"]]) == first]
        if len(behind) == ranks:
            return f"all ranks are in step {signs[0]['step'] + 1}"
        return "; ".join(
            f"rank {rank} is at '{signs[rank]['phase']}' of step {signs[rank]['step'] + 1}" for rank in behind
        )

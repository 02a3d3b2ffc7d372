"""What each rank is at, in a folder that all ranks see: when one hangs, the others can say which.

A rank that waits for another knows only that it waited too long. So a thread of each writes down every few seconds what
the rank is at; the one whose sign of life stays the same, or that is behind the others, is the one that hangs. Signs are
numbered, and compared with themselves a while before: the clocks of hosts differ by seconds.
"""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any, Literal

from common.files import read_json

Phase = Literal["starting", "data", "step"]
_ORDER: dict[str, int] = {"starting": 0, "data": 1, "step": 2}
_EVERY_S = 2.0
_OLD_S = 7.0
"""A living rank renews its sign within this time, on a busy machine, too."""
_TELL_AT = 0.9
"""Of the time that a collective may take: NCCL ends the process after it, and nobody could tell any more."""
Signs = dict[int, dict[str, Any] | None]
"""What each rank last wrote of itself; None of one that has ended."""
_log = logging.getLogger(__name__)


class Heartbeat:
    """The sign of life of one rank of `ranks`."""

    def __init__(self, folder: Path, rank: int, ranks: int, timeout_s: float):
        """`timeout_s` is how long a collective may take."""
        self._folder, self._rank, self._ranks, self._timeout_s = folder, rank, ranks, timeout_s
        self._at: tuple[int, Phase, float] = (0, "starting", time.monotonic())
        self._beat, self._told = 0, False
        self._ended = threading.Event()
        folder.mkdir(parents=True, exist_ok=True)
        self._write()
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)
        self._thread.start()

    def begin(self, step: int, phase: Phase) -> None:
        """This rank begins the phase of a step."""
        self._at = step, phase, time.monotonic()
        self._told = False

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        self._file(self._rank).unlink(missing_ok=True)

    def who_hangs(self) -> str:
        """Which ranks keep the others waiting, as far as their signs of life tell; waits for those of the living."""
        before = self._signs()
        time.sleep(_OLD_S)
        return _who(before, self._signs())

    def _signs(self) -> Signs:
        signs: Signs = {}
        for rank in range(self._ranks):
            try:
                signs[rank] = read_json(self._file(rank))
            except (OSError, ValueError):
                signs[rank] = None
        return signs

    def _renew(self) -> None:
        before: tuple[float, Signs] | None = None
        while not self._ended.wait(_EVERY_S):
            self._write()
            waited_s = self._waited_s()
            if self._told or waited_s < _TELL_AT * self._timeout_s - _OLD_S:
                before = None
            elif before is None:
                before = time.monotonic(), self._signs()
            elif time.monotonic() - before[0] >= _OLD_S:
                self._told = True
                _log.error("rank %d waits for the others since long: %s", self._rank, _who(before[1], self._signs()))

    def _waited_s(self) -> float:
        """How long this rank has been in a step, which ends once all ranks have come so far."""
        _, phase, since = self._at
        return time.monotonic() - since if phase == "step" else 0.0

    def _write(self) -> None:
        """A sign that cannot be written is missed; the next one may be."""
        step, phase, _ = self._at
        self._beat += 1
        temporary = self._folder / f".{self._rank}"
        try:
            temporary.write_text(json.dumps({"step": step, "phase": phase, "beat": self._beat}))
            temporary.replace(self._file(self._rank))
        except OSError as error:
            _log.warning("no sign of life could be written: %s", error)

    def _file(self, rank: int) -> Path:
        return self._folder / str(rank)


def _who(before: Signs, now: Signs) -> str:
    """What two looks at the signs of life tell, `_OLD_S` apart."""
    signs = {rank: sign for rank, sign in now.items() if sign is not None}
    if ended := [rank for rank in now if rank not in signs]:
        return f"rank {ended[0]} has ended"
    if silent := [rank for rank, sign in signs.items() if sign == before[rank]]:
        return "; ".join(f"rank {rank} has given no sign of life for {_OLD_S:g} s" for rank in silent)
    order = {rank: (sign["step"], _ORDER[sign["phase"]]) for rank, sign in signs.items()}
    behind = [rank for rank in order if order[rank] == min(order.values())]
    if len(behind) == len(now):
        return f"all ranks are in step {signs[0]['step'] + 1}"
    return "; ".join(f"rank {rank} is at '{signs[rank]['phase']}' of step {signs[rank]['step'] + 1}" for rank in behind)

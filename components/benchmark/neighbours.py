"""Who has the processors while an arm is timed: this process and the server, nobody, or others.

A request that waits for a processor takes longer, whatever its model does. Beside processes that keep every core busy it
waits several times as long as it computes, so a model that works 15% longer answers only 5% later: such a round hides a
slow-down and must not count. Which rounds these are is told by the processors' own counters, never by a latency.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from components.benchmark.measurements import ProcessorShares
from components.benchmark.settings import NeighbourSettings


@dataclass(frozen=True)
class _Moment:
    """Seconds since the machine started, of all processors that this process may use."""

    busy: float
    idle: float
    stolen: float
    own: float


class Neighbours:
    """Each call of `shares` tells of the time since the one before."""

    def __init__(self, own_cpu_s: Callable[[], float | None]):
        """`own_cpu_s` tells how much processor time this measurement's processes had so far, `None` where nobody knows."""
        self._own_cpu_s = own_cpu_s
        self._before = self._now()

    def shares(self) -> ProcessorShares | None:
        """`None` where the system does not tell."""
        before, self._before = self._before, self._now()
        after = self._before
        if before is None or after is None:
            return None
        busy, idle, stolen = after.busy - before.busy, after.idle - before.idle, after.stolen - before.stolen
        total = busy + idle + stolen
        if total <= 0:
            return None
        others = max(0.0, busy - (after.own - before.own)) + stolen
        return ProcessorShares(others=round(others / total, 4), idle=round(idle / total, 4))

    def _now(self) -> _Moment | None:
        """Interrupts are nobody's: those of our own requests over loopback are among them."""
        import psutil

        own, usable = self._own_cpu_s(), os.sched_getaffinity(0)
        if own is None:
            return None
        processors = [times for number, times in enumerate(psutil.cpu_times(percpu=True)) if number in usable]
        return _Moment(
            busy=sum(each.user + each.system + getattr(each, "nice", 0.0) for each in processors),
            idle=sum(each.idle + getattr(each, "iowait", 0.0) for each in processors),
            stolen=sum(getattr(each, "steal", 0.0) for each in processors),
            own=own,
        )


def are_disturbing(settings: NeighbourSettings, shares: ProcessorShares | None) -> bool:
    """Whether others had so much that ours waited for a processor; where nobody knows, they may have had."""
    if settings.max_others_share >= 1:
        return False
    return shares is None or shares.others > max(settings.max_others_share, shares.idle)

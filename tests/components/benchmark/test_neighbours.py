"""Whose the processors were, from the counters of real processes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from components.benchmark.measurements import ProcessorShares
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.settings import NeighbourSettings

SECONDS = 1.0


@contextmanager
def busy_cores() -> Iterator[list[psutil.Process]]:
    """A process for each core of this machine that takes it whole."""
    started = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    try:
        yield [psutil.Process(each.pid) for each in started]
    finally:
        for process in started:
            process.kill()
            process.wait()


def cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def test_what_other_processes_take_is_theirs() -> None:
    this = [psutil.Process()]
    with busy_cores() as others:
        theirs, ours = Neighbours(lambda: cpu_s(this)), Neighbours(lambda: cpu_s([*this, *others]))
        before_s, start = cpu_s(others), time.perf_counter()
        time.sleep(SECONDS)
        taken, own = theirs.shares(), ours.shares()
        had_s, lasted_s = cpu_s(others) - before_s, time.perf_counter() - start
    assert taken is not None and taken.others > 0.85 and taken.idle < 0.1
    # How much the busy ones had is up to the machine, where it has more to do than this test.
    assert own is not None and own.idle < 0.1
    assert had_s > 0 and taken.others - own.others == pytest.approx(had_s / (lasted_s * len(others)), abs=0.1)


def test_each_call_tells_of_the_time_since_the_one_before() -> None:
    told = iter([0.0, 0.0, 1000.0, 1000.0])  # in the second interval all was our own
    neighbours, others = Neighbours(lambda: next(told)), list[float]()
    with busy_cores():
        for _ in range(3):
            time.sleep(SECONDS)
            shares = neighbours.shares()
            assert shares is not None
            others.append(shares.others)
    # What a host takes of its guests is never our own: some of the second interval may be left, too.
    assert others[0] > 0.85 and others[1] < 0.3 and others[2] > 0.85


def test_where_our_own_time_is_not_known_others_may_have_had_all_the_rest() -> None:
    neighbours = Neighbours(lambda: None)
    assert neighbours.shares() is None
    assert are_disturbing(NeighbourSettings(), None)
    assert not are_disturbing(NeighbourSettings(max_others_share=1), None)


@pytest.mark.parametrize(
    ("others", "idle", "disturbing"),
    [
        (0.03, 0.43, False),
        (0.05, 0.0, False),
        (0.34, 0.16, True),
        (0.75, 0.0, True),
        (0.40, 0.55, False),  # a large node: nobody waits for a processor
    ],
)
def test_others_disturb_where_they_have_much_and_little_stands_idle(
    others: float, idle: float, disturbing: bool
) -> None:
    shares = ProcessorShares(others=others, idle=idle)
    assert are_disturbing(NeighbourSettings(), shares) is disturbing
    assert not are_disturbing(NeighbourSettings(max_others_share=1), shares)

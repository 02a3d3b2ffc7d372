"""What waits is answered together, in order, and nothing is lost."""

import threading

import pytest

from serving.package.runtime.grouping import Groups, QueueFull


class Held:
    """Answers nothing until it is let go, and keeps the groups that it was given."""

    def __init__(self):
        self.groups: list[list[int]] = []
        self.taken, self.go = threading.Semaphore(0), threading.Event()

    def __call__(self, group: list[int]) -> None:
        self.taken.release()
        assert self.go.wait(timeout=10)
        self.groups.append(group)


def answered(jobs: list[int], largest: int) -> list[list[int]]:
    """The groups of jobs that came while the first one was being answered; their kind is whether they are odd."""
    held = Held()
    groups = Groups(held, lambda job: job % 2, largest=largest, largest_queue=8)
    groups.add(jobs[0])
    assert held.taken.acquire(timeout=10)
    for job in jobs[1:]:
        groups.add(job)
    held.go.set()
    groups.close()
    return held.groups


def test_what_waits_goes_together_by_its_kind_oldest_first():
    assert answered([0, 1, 2, 3, 4, 5], largest=8) == [[0], [1, 3, 5], [2, 4]]


def test_a_group_has_a_largest_size_and_the_rest_keep_their_order():
    assert answered([0, 2, 4, 1, 6, 8, 3], largest=2) == [[0], [2, 4], [1, 3], [6, 8]]


def test_every_job_of_many_threads_is_answered_once():
    seen: list[int] = []
    groups = Groups(seen.extend, lambda job: job % 3, largest=4, largest_queue=1600)
    threads = [
        threading.Thread(target=lambda first=first: [groups.add(first * 200 + job) for job in range(200)])
        for first in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    groups.close()
    assert sorted(seen) == list(range(1600))


def test_no_more_wait_than_may_and_who_no_longer_waits_makes_room():
    held, gone = Held(), set[int]()
    groups = Groups(held, lambda job: 0, largest=8, largest_queue=3, wanted=lambda job: job not in gone)
    groups.add(0)
    assert held.taken.acquire(timeout=10)
    for job in (1, 2, 3):
        groups.add(job)
    with pytest.raises(QueueFull, match="3 requests wait"):
        groups.add(4)
    gone |= {2}
    groups.add(5)
    with pytest.raises(QueueFull):
        groups.add(6)
    held.go.set()
    groups.close()
    assert held.groups == [[0], [1, 3, 5]]


def test_nothing_is_taken_once_closed():
    groups = Groups(lambda group: None, lambda job: 0, largest=1, largest_queue=1)
    groups.close()
    with pytest.raises(RuntimeError, match="closed"):
        groups.add(1)

"""What is under way is looked at until it is done."""

import threading
import time

from serving.package.runtime.watch import Watch


class Looks:
    """What was looked at, in order; `gone` has nothing more to see."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.often = threading.Semaphore(0)

    def __call__(self, job: str) -> bool:
        self.seen.append(job)
        self.often.release()
        return job != "gone"


def test_a_job_is_looked_at_again_and_again_until_it_is_removed():
    looks = Looks()
    watch = Watch(looks, every_s=0.001)
    watch.add("a")
    for _ in range(3):
        assert looks.often.acquire(timeout=10)
    watch.remove("a")
    watch.add("b")
    while looks.seen[-3:] != ["b"] * 3:
        assert looks.often.acquire(timeout=10)
    watch.close()
    seen = len(looks.seen)
    assert set(looks.seen) == {"a", "b"}
    watch.add("c")
    assert len(looks.seen) == seen


def test_a_job_with_nothing_more_to_see_is_looked_at_once():
    looks = Looks()
    watch = Watch(looks, every_s=0.001)
    watch.add("gone")
    assert looks.often.acquire(timeout=10)
    watch.add("here")
    for _ in range(3):
        assert looks.often.acquire(timeout=10)
    watch.close()
    assert looks.seen.count("gone") == 1


def test_a_job_that_ends_within_the_pause_is_never_looked_at():
    looks: list[str] = []
    watch = Watch(lambda job: not looks.append(job), every_s=0.2)
    watch.add("short")
    watch.remove("short")
    watch.close()
    assert not looks


def test_it_closes_at_once_whether_there_is_a_job_or_none():
    for jobs in ([], ["a"]):
        watch = Watch(lambda job: True, every_s=60)
        for job in jobs:
            watch.add(job)
        watch.close()


def test_a_job_that_cannot_be_looked_at_harms_no_other():
    looks, failed = Looks(), []

    def look(job: str) -> bool:
        if job == "broken":
            raise RuntimeError("nobody knows this request")
        return looks(job)

    watch = Watch(look, every_s=0.001, failed=lambda job, error: failed.append((job, str(error))))
    for job in ("broken", "a", "gone"):
        watch.add(job)
    for _ in range(5):
        assert looks.often.acquire(timeout=10)
    watch.add("later")
    while "later" not in looks.seen or looks.seen.count("a") < 3:
        assert looks.often.acquire(timeout=10)
    watch.close()
    assert looks.seen.count("gone") == 1
    assert failed == [("broken", "nobody knows this request")]


def test_looking_at_many_takes_its_share_of_the_time_and_each_has_its_turn():
    looked: list[int] = []

    def look(job: int) -> bool:
        time.sleep(0.001)
        looked.append(job)
        return True

    watch = Watch(look, every_s=0.01, share=0.3)
    for job in range(100):
        watch.add(job)
    began = time.perf_counter()
    while len(looked) < 200:
        time.sleep(0.01)
    taken_s = time.perf_counter() - began
    watch.close()
    assert sorted(looked[:100]) == sorted(looked[100:200]) == list(range(100))
    assert taken_s > 0.5  # 200 looks without a pause are 0.2 s


def test_what_is_cheap_to_see_is_seen_of_all_each_time():
    glances, looked = Looks(), threading.Event()

    def look(job: str) -> bool:
        looked.set()
        return not threading.Event().wait(0.001)

    watch = Watch(look, every_s=0.01, glance=glances, share=0.001)
    for job in ("gone", *map(str, range(20))):
        watch.add(job)
    while glances.seen.count("19") < 3:  # a round looks at one alone
        assert glances.often.acquire(timeout=10)
    watch.close()
    assert looked.is_set() and glances.seen.count("gone") == 1
    assert {glances.seen.count(str(job)) for job in range(20)} <= {
        glances.seen.count("19"),
        glances.seen.count("19") + 1,
    }

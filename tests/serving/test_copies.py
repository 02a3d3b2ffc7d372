"""Each copy of a model is a process of its own: one that stands still is noticed while the others answer."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient
from serving import health as health_module
from serving.health import Copy, Health, Movement
from serving.server import TritonServer
from tests.clock import Clock
from tests.packages import RUNTIME, build
from tests.serving.served import Served, eventually


class Rounds:
    """A health of which a test says who answers; 10 s are too long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, copies: int):
        self.clock, self.copies, self.package = Clock(), copies, "first"
        self.asked, self._answering = 0, ()
        monkeypatch.setattr(health_module, "ask", self._ask)
        self._health = Health(lambda: "", "generator", stalled_after_s=10, every_s=1, now=self.clock)

    def _ask(self, endpoint: str, model: str, *, timeout_s: float) -> Movement | None:
        """Those that answer do so in turn."""
        self.asked += 1
        if not self._answering:
            return None
        name = self._answering[self.asked % len(self._answering)]
        return Movement(copy=Copy(name, self.copies, self.package))

    def after(self, seconds: float, *answering: str) -> float | None:
        """What is told of the round in which these answer."""
        self.clock.seconds += seconds
        self._answering = answering
        return self._health.still_s()


def test_a_copy_that_is_not_heard_any_more_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, 2)
    assert rounds.after(1, "a", "b") is None
    assert [rounds.after(1, "a") for _ in range(10)] == [None] * 10
    assert rounds.after(1, "a") == 10
    assert rounds.after(1, "a", "b") is None


def test_a_copy_that_was_never_heard_stands_still_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, 3)
    assert [rounds.after(1, "a", "b") for _ in range(10)] == [None] * 10
    assert rounds.after(1, "a", "b") == 10


def test_copies_that_are_heard_now_and_then_are_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, 2)
    assert [rounds.after(1, "ab"[number // 8 % 2]) for number in range(40)] == [None] * 40


def test_a_round_ends_with_all_heard_with_one_question_in_vain_or_after_enough_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = Rounds(monkeypatch, 2)
    rounds.after(1, "a", "b")
    assert rounds.asked == 2
    rounds.after(1)
    assert rounds.asked == 3
    rounds.after(1, "a")
    assert rounds.asked == 3 + 8


def test_another_package_owes_nothing_for_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, 2)
    assert [rounds.after(1, "a") for _ in range(8)] == [None] * 8
    rounds.package, rounds.copies = "second", 1
    assert [rounds.after(1, "b") for _ in range(20)] == [None] * 20


def test_only_questions_that_were_asked_and_not_answered_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load, or a lock, held up whoever asks for longer than the server may be silent."""
    rounds = Rounds(monkeypatch, 1)
    assert rounds.after(1, "a") is None
    assert rounds.after(70) is None
    assert rounds.after(1, "a") is None
    assert rounds.after(1) is None
    assert rounds.after(70) is None
    assert [rounds.after(1) for _ in range(9)] == [None] * 9
    assert rounds.after(1) == 10


@pytest.fixture(scope="module")
def package(engine: Path, package_store: Path, key_folder: Path) -> Path:
    """One with two copies."""
    return build(engine, package_store, key_folder, runtime=replace(RUNTIME, instances=2))


@contextmanager
def clients(endpoint: str, count: int) -> Iterator[None]:
    """So many ask without a pause."""
    stop = threading.Event()

    def draw() -> None:
        with GeneratorClient(endpoint, model="two") as client:
            while not stop.is_set():
                client.generate("a red seven")

    threads = [threading.Thread(target=draw) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize("count", [0, 8], ids=["idle", "busy"])
def test_both_copies_of_a_model_that_serves_are_heard(server: TritonServer, package: Path, count: int) -> None:
    server.load(package, "two")
    clock = Clock()
    health = Health(lambda: server.grpc_endpoint, "two", stalled_after_s=3, every_s=1, now=clock)
    with clients(server.grpc_endpoint, count):
        for _ in range(100):
            clock.seconds += 1
            assert health.still_s() is None


@pytest.mark.parametrize(
    ("which", "how"), [(2, signal.SIGSTOP), (3, signal.SIGKILL)], ids=["one stands still", "the other one died"]
)
def test_a_server_with_a_copy_that_answers_no_more_is_started_again(
    which: int, how: signal.Signals, tmp_path: Path, package: Path, package_store: Path, key_folder: Path
) -> None:
    with Served(tmp_path, package_store, key_folder, package.name, stalled_after_s=2) as served:
        eventually(lambda: served.version() == package.name)
        before = served.processes()
        assert len(before) == 4
        before[which].send_signal(how)
        eventually(lambda: not [process for process in before if process.is_running()])
        eventually(lambda: served.version() == package.name)


def test_a_server_whose_copies_all_answer_is_left_alone(
    tmp_path: Path, package: Path, package_store: Path, key_folder: Path
) -> None:
    with Served(tmp_path, package_store, key_folder, package.name, stalled_after_s=2) as served:
        eventually(lambda: served.version() == package.name)
        before = served.processes()
        time.sleep(8)
        assert served.processes() == before

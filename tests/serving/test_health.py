"""A served model says whether what it has to do moves; silence and standing still are told from being busy."""

import socket
import threading
import time
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient
from serving.health import Health, Movement, ask
from serving.package.runtime.progress import Progress
from serving.server import TritonServer
from tests.clock import Clock
from tests.serving.served import eventually


def test_nothing_stands_still_where_nothing_is_to_be_done() -> None:
    clock = Clock()
    progress = Progress(clock)
    clock.seconds += 50
    assert progress.still_s() == 0
    progress.begin()
    assert progress.still_s() == 0  # the idle time before it does not count
    clock.seconds += 3
    progress.begin()
    assert progress.still_s() == 3  # who comes moves nothing
    progress.move()
    assert progress.still_s() == 0
    clock.seconds += 4
    assert (progress.under_way, progress.still_s()) == (2, 4)
    progress.end()
    progress.end()
    clock.seconds += 5
    assert (progress.under_way, progress.still_s()) == (0, 0)


def test_a_model_that_serves_answers_also_while_it_is_busy(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator")
    stop = threading.Event()

    def draw() -> None:
        with GeneratorClient(server.grpc_endpoint) as client:
            while not stop.is_set():
                client.generate("a red seven")

    threads = [threading.Thread(target=draw) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        told = [ask(server.grpc_endpoint, "generator", timeout_s=10) for _ in range(50)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    movements = [each for each in told if each is not None]
    assert len(movements) == 50
    assert max(each.still_s for each in movements) < 5
    assert 1 <= max(each.under_way for each in movements) <= 8  # an answer arrives a moment before it counts as sent
    eventually(
        lambda: ask(server.grpc_endpoint, "generator", timeout_s=10) == Movement()
    )  # nothing is under way any more


def test_a_model_that_is_not_loaded_is_told_from_one_with_nothing_to_do(
    server: TritonServer, packages: dict[str, Path]
) -> None:
    assert ask(server.grpc_endpoint, "no such model", timeout_s=10) == Movement(loaded=False)
    server.load(packages["int8"], "short")
    assert ask(server.grpc_endpoint, "short", timeout_s=10) == Movement(loaded=True)
    server.unload("short")
    assert ask(server.grpc_endpoint, "short", timeout_s=10) == Movement(loaded=False)


def test_who_takes_the_question_and_says_nothing_is_silent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = f"127.0.0.1:{listener.getsockname()[1]}"
        clock, before = Clock(), time.monotonic()
        health = Health(lambda: endpoint, "generator", stalled_after_s=0.5, every_s=0.1, now=clock)
        assert health.still_s() is None  # just begun
        clock.seconds += 0.3
        assert health.still_s() is None  # not answered for the first time
        clock.seconds += 0.3
        assert health.still_s() is None  # silent, but not for long
        clock.seconds += 0.3
        assert health.still_s() == pytest.approx(0.6)
        assert time.monotonic() - before < 10
        health.begin()
        clock.seconds += 0.3
        assert health.still_s() is None


def test_an_answer_ends_a_silence(server: TritonServer) -> None:
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoints = [f"127.0.0.1:{listener.getsockname()[1]}", server.grpc_endpoint, server.grpc_endpoint]
        health = Health(lambda: endpoints.pop(0), "generator", stalled_after_s=3, every_s=1, now=clock)
        for _ in range(3):
            clock.seconds += 2
            assert health.still_s() is None
    assert not endpoints  # each was asked

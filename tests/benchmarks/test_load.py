"""The load that benchmarks make: a server that stalls cannot hide it."""

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.service_pb2
from tritonclient.grpc import service_pb2_grpc

from benchmarks import load as loading
from benchmarks.load import load_until_ended, run_load
from common.errors import ServerError
from tests.serving.served import eventually

messages: Any = tritonclient.grpc.service_pb2
STALL_S = 0.5


class Stalling(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers at once, one request at a time, but for one of them."""

    def __init__(self):
        self.answered = 0

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        next(request_iterator)
        self.answered += 1
        if self.answered == 20:
            time.sleep(STALL_S)
        if self.answered == 40:
            yield messages.ModelStreamInferResponse(error_message="INTERNAL: once")
            return
        for stage in ("coarse", "final"):
            yield messages.ModelStreamInferResponse(infer_response=answer(stage))


def answer(stage: str) -> Any:
    made = messages.ModelInferResponse(model_name="generator")
    contents = {
        "image": ([1, 1, 3], bytes(3)),
        "stage": ([1], text(stage)),
        "final": ([1], b"\1"),
        "package_digest": ([1], text("0")),
        "seed": ([1], struct.pack("<q", 0)),
        "timings": ([1], text(json.dumps({}))),
    }
    for name, (shape, raw) in contents.items():
        made.outputs.add(name=name, shape=shape)
        made.raw_output_contents.append(raw)
    return made


def text(content: str) -> bytes:
    return struct.pack("<I", len(content)) + content.encode()


@pytest.fixture
def stalling() -> Stalling:
    return Stalling()


@pytest.fixture
def endpoint(stalling: Stalling) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(stalling, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


def test_latency_counts_from_when_a_request_was_due(endpoint):
    load = run_load(endpoint, "generator", rate=100, seconds=1.5)
    assert load.offered_per_s == 100 and 100 < len(load.image_ms) + 1 < 200
    # About 50 requests were due while the server slept, and each waited for what was left of it.
    late = np.array([ms for ms in load.image_ms if ms > 0.2 * 1000 * STALL_S])
    assert 25 < len(late) < 75 and late.max() > 0.9 * 1000 * STALL_S
    assert load.errors == ["INTERNAL: once"]


def test_clients_that_wait_for_their_answer_see_a_stall_once(endpoint):
    load = run_load(endpoint, "generator", clients=1, seconds=1.5)
    assert sum(ms > 1000 * STALL_S / 2 for ms in load.image_ms) == 1
    assert load.images_per_s > 40 and len(load.preview_ms) == len(load.image_ms)


@pytest.mark.parametrize("how", [{"clients": 2}, {"rate": 200.0}])
def test_a_load_that_is_told_to_end_says_what_came_of_it_until_then(endpoint, stalling, how):
    with load_until_ended(endpoint, "generator", **how) as end:
        eventually(lambda: stalling.answered >= 60)
        load = end()
    # The first request connects and is not counted; one fails, and all the others are answered.
    assert len(load.image_ms) == len(load.due_s) == stalling.answered - 2 and load.errors == ["INTERNAL: once"]
    assert 0 < load.seconds < 60


def test_a_load_that_ended_by_itself_is_no_answer(endpoint, monkeypatch):
    monkeypatch.setattr(loading, "_LONGEST_S", 0.1)
    started, start = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **how: started.append(start(*given, **how)) or started[0])
    with load_until_ended(endpoint, "generator", clients=1) as end:
        started[0].wait(60)
        with pytest.raises(ServerError, match="the load ended before it was told to"):
            end()


@pytest.fixture
def silent() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("how", [{"clients": 2}, {"rate": 10}])
def test_a_server_that_stands_still_is_errors_and_no_endless_wait(silent, how):
    start = time.monotonic()
    load = run_load(silent, "generator", seconds=1.0, timeout_s=0.4, **how)
    assert time.monotonic() - start < 30
    assert load.image_ms == [] and load.images_per_s == 0
    assert len(load.errors) >= 4 and set(load.errors) == {"StatusCode.DEADLINE_EXCEEDED"}


def test_a_load_that_does_not_end_is_ended(silent, monkeypatch):
    monkeypatch.setattr(loading, "_SPARE_S", 0.0)  # less than it takes to begin
    with pytest.raises(ServerError, match=r"a load of 0\.1 s did not end within 0\.3 s"):
        run_load(silent, "generator", clients=1, seconds=0.1, timeout_s=0.1)

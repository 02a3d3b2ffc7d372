"""Fault 23: whatever a request holds, it gets a typed error, and the server and the other requests are unharmed."""

import re
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import tritonclient.grpc.service_pb2
from tritonclient.grpc import service_pb2_grpc

from emuflow_client import GeneratorClient, GeneratorError, InvalidRequest, TimedOut
from serving.server import TritonServer

messages: Any = tritonclient.grpc.service_pb2
NAME = "asked"


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def request(**tensors: tuple[str, list[int], bytes]) -> Any:
    """A request of raw tensors: name=(datatype, shape, bytes)."""
    made = messages.ModelInferRequest(model_name=NAME)
    for name, (datatype, shape, content) in tensors.items():
        made.inputs.add(name=name, datatype=datatype, shape=shape)
        made.raw_input_contents.append(content)
    return made


PROMPT = ("BYTES", [1], text(b"a red seven"))
BAD_REQUESTS = {
    "no inputs": request(),
    "no prompt": request(seed=("INT64", [1], struct.pack("<q", 1))),
    "empty prompt": request(prompt=("BYTES", [1], text(b""))),
    "blank prompt": request(prompt=("BYTES", [1], text(b" \t\n"))),
    "no bytes at all": request(prompt=("BYTES", [1], b"")),
    "length beyond the bytes": request(prompt=("BYTES", [1], struct.pack("<I", 99) + b"a")),
    "length below the bytes": request(prompt=("BYTES", [1], struct.pack("<I", 1) + b"abc")),
    "two prompts": request(prompt=("BYTES", [2], text(b"a") + text(b"b"))),
    "prompt of shape [1, 1]": request(prompt=("BYTES", [1, 1], text(b"a"))),
    "prompt of integers": request(prompt=("INT64", [1], struct.pack("<q", 1))),
    "not UTF-8": request(prompt=("BYTES", [1], text(b"\xff\xfe\x00"))),
    "oversized": request(prompt=("BYTES", [1], text(b"a" * 257))),
    "5 MB": request(prompt=("BYTES", [1], text(b"a" * 5_000_000))),
    "too many tokens": request(prompt=("BYTES", [1], text(b"z y x " * 20))),
    "negative seed": request(prompt=PROMPT, seed=("INT64", [1], struct.pack("<q", -1))),
    "half a seed": request(prompt=PROMPT, seed=("INT64", [1], b"\x01\x00")),
    "seed as float": request(prompt=PROMPT, seed=("FP32", [1], struct.pack("<f", 1))),
    "no steps": request(prompt=PROMPT, coarse_steps=("INT32", [1], struct.pack("<i", 0))),
    "too many steps": request(prompt=PROMPT, coarse_steps=("INT32", [1], struct.pack("<i", 10_000_000))),
    "NaN": request(prompt=PROMPT, temperature=("FP32", [1], struct.pack("<f", float("nan")))),
    "infinity": request(prompt=PROMPT, temperature=("FP32", [1], struct.pack("<f", float("inf")))),
    "too hot": request(prompt=PROMPT, temperature=("FP32", [1], struct.pack("<f", 1e30))),
    "guidance NaN": request(prompt=PROMPT, guidance=("FP32", [1], struct.pack("<f", float("nan")))),
    "guidance infinite": request(prompt=PROMPT, guidance=("FP32", [1], struct.pack("<f", float("-inf")))),
    "guidance below 0": request(prompt=PROMPT, guidance=("FP32", [1], struct.pack("<f", -1e-3))),
    "too much guidance": request(prompt=PROMPT, guidance=("FP32", [1], struct.pack("<f", 20.5))),
    "guidance as integer": request(prompt=PROMPT, guidance=("INT32", [1], struct.pack("<i", 2))),
    "a size that there is not": request(prompt=PROMPT, size=("INT32", [2], struct.pack("<ii", 64, 32))),
    "a negative size": request(prompt=PROMPT, size=("INT32", [2], struct.pack("<ii", -64, -64))),
    "a size of petabytes": request(prompt=PROMPT, size=("INT32", [2], struct.pack("<ii", 2**31 - 1, 2**31 - 1))),
    "half a size": request(prompt=PROMPT, size=("INT32", [1], struct.pack("<i", 64))),
    "a size of three": request(prompt=PROMPT, size=("INT32", [3], struct.pack("<iii", 64, 64, 3))),
    "unknown format": request(prompt=PROMPT, format=("BYTES", [1], text(b"jpeg"))),
    "no format": request(prompt=PROMPT, format=("BYTES", [1], text(b""))),
    "format not UTF-8": request(prompt=PROMPT, format=("BYTES", [1], text(b"\xff\x00"))),
    "5 MB of format": request(prompt=PROMPT, format=("BYTES", [1], text(b"png" * 1_700_000))),
    "two formats": request(prompt=PROMPT, format=("BYTES", [2], text(b"raw") + text(b"png"))),
    "no time": request(prompt=PROMPT, deadline_ms=("INT64", [1], struct.pack("<q", 0))),
    "less than no time": request(prompt=PROMPT, deadline_ms=("INT64", [1], struct.pack("<q", -(2**63)))),
    "eternity": request(prompt=PROMPT, deadline_ms=("INT64", [1], struct.pack("<q", 2**63 - 1))),
    "deadline as float": request(prompt=PROMPT, deadline_ms=("FP64", [1], struct.pack("<d", 100.0))),
    "unknown input": request(prompt=PROMPT, wish=("FP32", [1], struct.pack("<f", 1))),
    "a huge shape": request(prompt=("BYTES", [2**62], text(b"a"))),
    "a negative shape": request(prompt=("BYTES", [-1], text(b"a"))),
}

REFUSED_BY_TRITON = {
    "no inputs", "no bytes at all", "length beyond the bytes", "length below the bytes", "two prompts",
    "prompt of shape [1, 1]", "prompt of integers", "half a seed", "seed as float", "unknown input", "a huge shape",
    "a negative shape", "guidance as integer", "half a size", "a size of three", "two formats", "deadline as float",
}  # fmt: skip
"""Tensors that contradict config.pbtxt never reach the model; Triton's words for them have no prefix."""


@pytest.fixture(scope="module")
def asked(server: TritonServer, packages: dict[str, Path]) -> TritonServer:
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    return server


def model_processes(server: TritonServer) -> set[int]:
    return {process.pid for process in psutil.Process(server.pid).children(recursive=True)}


@pytest.fixture
def unharmed(asked: TritonServer) -> Iterator[None]:
    """While the test runs, others ask for images; every one of them must come, from the same processes."""
    before = model_processes(asked)
    errors: list[GeneratorError] = []
    answered = threading.Semaphore(0)
    done = threading.Event()

    def ask() -> None:
        with GeneratorClient(asked.grpc_endpoint, timeout_s=20, model=NAME, retries=0) as client:
            while not done.is_set():
                try:
                    client.generate("a blue nine", seed=3)
                    answered.release()
                except GeneratorError as error:
                    errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    yield
    for _ in range(4):
        assert answered.acquire(timeout=20)
    done.set()
    for thread in threads:
        thread.join()
    assert errors == []
    assert model_processes(asked) == before


@pytest.mark.usefixtures("unharmed")
def test_fault_23_every_bad_request_gets_an_error_on_its_own_stream(asked: TritonServer) -> None:
    with grpc.insecure_channel(asked.grpc_endpoint) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for name, bad in BAD_REQUESTS.items():
            replies = list(stub.ModelStreamInfer(iter([bad]), timeout=20))
            assert len(replies) == 1, name
            said = replies[0].error_message
            if name in REFUSED_BY_TRITON:
                assert re.search("expected|unexpected|incomplete|mismatch|data-type|dimensions", said), name
            else:
                assert re.match(
                    r"INVALID_ARGUMENT: '(prompt|seed|coarse_steps|temperature|guidance|size|format|deadline_ms)' ",
                    said,
                ), name


@pytest.mark.usefixtures("unharmed")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": ""}, "empty"),
        ({"prompt": "a" * 257}, "more than 256"),
        ({"prompt": "z y x " * 20}, "tokens"),
        ({"prompt": "\ud800"}, "valid Unicode"),
        ({"prompt": "a", "seed": -1}, "below 0"),
        ({"prompt": "a", "seed": 2**63}, "seed cannot be"),
        ({"prompt": "a", "coarse_steps": 65}, r"outside 1\.\.64"),
        ({"prompt": "a", "temperature": float("nan")}, "temperature"),
        ({"prompt": "a", "guidance": float("nan")}, r"'guidance' is nan, outside 0\.\.20"),
        ({"prompt": "a", "guidance": "much"}, "guidance cannot be"),
        ({"prompt": "a", "size": (48, 48)}, "48x48, but this model draws 64x64 or 32x32"),
        ({"prompt": "a", "size": (64, 64, 3)}, "size cannot be"),
        ({"prompt": "a", "size": 64}, "size cannot be"),
        ({"prompt": "a", "format": "jpeg"}, "format cannot be"),
        ({"prompt": "a", "deadline_ms": 0}, r"outside 1\.\.60000"),
        ({"prompt": "a", "deadline_ms": 2**63}, "deadline_ms cannot be"),
    ],
)
def test_fault_23_the_client_raises_invalid_request(
    asked: TritonServer, arguments: dict[str, Any], message: str
) -> None:
    with (
        GeneratorClient(asked.grpc_endpoint, timeout_s=20, model=NAME) as client,
        pytest.raises(InvalidRequest, match=message),
    ):
        client.generate(**arguments)


@pytest.mark.usefixtures("unharmed")
def test_fault_23_cancelled_and_timed_out_requests_harm_no_other(asked: TritonServer) -> None:
    with GeneratorClient(asked.grpc_endpoint, timeout_s=20, model=NAME) as client:
        for _ in range(10):
            stages = client.stream("a red seven", coarse_steps=64)
            next(stages)
            stages.close()
    with GeneratorClient(asked.grpc_endpoint, timeout_s=0.002, model=NAME) as hasty:
        for _ in range(10):
            with pytest.raises(TimedOut):
                hasty.generate("a red seven", coarse_steps=64)
    with GeneratorClient(asked.grpc_endpoint, timeout_s=20, model=NAME) as late:
        for _ in range(10):
            with pytest.raises(TimedOut, match="DEADLINE_EXCEEDED: there was no image within 1 ms"):
                late.generate("a red seven", coarse_steps=64, deadline_ms=1)


def test_fault_23_a_cancelled_request_stops_before_its_next_stage(asked: TritonServer) -> None:
    """Requests that were cancelled while they waited are not drawn: the next one is answered soon."""
    with grpc.insecure_channel(asked.grpc_endpoint) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        steps = ("INT32", [1], struct.pack("<i", 64))
        one = request(prompt=PROMPT, coarse_steps=steps)
        start = time.perf_counter()
        list(stub.ModelStreamInfer(iter([one]), timeout=20))
        alone_s = time.perf_counter() - start
        waiting = [stub.ModelStreamInfer(iter([one]), timeout=20) for _ in range(40)]
        time.sleep(0.05)
        for call in waiting:
            call.cancel()
        start = time.perf_counter()
        with GeneratorClient(asked.grpc_endpoint, timeout_s=20, model=NAME) as client:
            client.generate("a red seven")
        assert time.perf_counter() - start < 20 * alone_s

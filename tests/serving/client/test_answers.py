"""What the clients make of answers that nobody promised, and of their own end; a gRPC server of the test gives them."""

import asyncio
import json
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc.service_pb2
from tritonclient.grpc import service_pb2_grpc

from emuflow_client import AsyncGeneratorClient, Cancelled, Closed, GeneratorClient, GeneratorError, Result, ServerFault

messages: Any = tritonclient.grpc.service_pb2
Contents = dict[str, tuple[list[int], bytes]]


def text(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


PIXELS = bytes(range(24))
FINE: Contents = {
    "image": ([2, 4, 3], PIXELS),
    "stage": ([1], text(b"final")),
    "final": ([1], b"\1"),
    "package_digest": ([1], text(b"0")),
    "seed": ([1], struct.pack("<q", 7)),
    "timings": ([1], text(json.dumps({"final": 1.5}).encode())),
}
BROKEN: dict[str, Contents] = {
    "image": {"image": ([2, 4, 3], PIXELS[1:])},
    "shape": {"image": ([24], PIXELS)},
    "no side": {"image": ([-1, 4, 3], PIXELS)},
    "stage": {"stage": ([1], text(b"\xff"))},
    "cut off": {"stage": ([1], b"\5\0\0\0fin")},
    "no length": {"package_digest": ([1], b"\1")},
    "seed": {"seed": ([1], b"\1")},
    "no JSON": {"timings": ([1], text(b"{"))},
    "no object": {"timings": ([1], text(b"[1]"))},
    "encoded": {"encoded": ([1], b"\7\0\0\0PNG")},
}


class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Answers every request with `contents`, or holds it until the test ends."""

    def __init__(self) -> None:
        self.contents, self.outputs_left_out = FINE, 0
        self.asked, self.held, self.ends = threading.Semaphore(0), False, threading.Event()

    def ModelStreamInfer(self, request_iterator: Iterator[Any], context: Any) -> Iterator[Any]:
        next(request_iterator)
        self.asked.release()
        if self.held:
            self.ends.wait(20)
            return
        made = messages.ModelInferResponse(model_name="generator")
        for name, (shape, raw) in self.contents.items():
            made.outputs.add(name=name, shape=shape)
            made.raw_output_contents.append(raw)
        del made.raw_output_contents[len(self.contents) - self.outputs_left_out :]
        yield messages.ModelStreamInferResponse(infer_response=made)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Answering, str]]:
    answering, grpc_server = Answering(), grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, grpc_server)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    grpc_server.start()
    yield answering, f"127.0.0.1:{port}"
    answering.ends.set()
    grpc_server.stop(0)


def ask(endpoint: str) -> Result:
    with GeneratorClient(endpoint, timeout_s=10) as client:
        return client.generate("a red seven")


def ask_in_asyncio(endpoint: str) -> Result:
    async def generate() -> Result:
        async with AsyncGeneratorClient(endpoint, timeout_s=10) as client:
            return await client.generate("a red seven")

    return asyncio.run(generate())


@pytest.mark.parametrize("generate", [ask, ask_in_asyncio])
def test_an_image_is_the_callers_own(server: tuple[Answering, str], generate: Callable[[str], Result]) -> None:
    answering, endpoint = server
    answering.contents, answering.outputs_left_out = FINE, 0
    result = generate(endpoint)
    assert result.image.tobytes() == PIXELS and result.image.shape == (2, 4, 3) and result.seed == 7
    result.image[:] = 0
    assert not np.any(result.image)


@pytest.mark.parametrize("generate", [ask, ask_in_asyncio])
@pytest.mark.parametrize("what", BROKEN)
def test_an_answer_that_cannot_be_read_is_the_servers_fault(
    server: tuple[Answering, str], generate: Callable[[str], Result], what: str
) -> None:
    answering, endpoint = server
    answering.contents, answering.outputs_left_out = FINE | BROKEN[what], 0
    with pytest.raises(ServerFault, match="model 'generator' cannot be read"):
        generate(endpoint)


def test_contents_that_are_not_there_are_the_servers_fault(server: tuple[Answering, str]) -> None:
    answering, endpoint = server
    answering.contents, answering.outputs_left_out = FINE, 1
    with pytest.raises(ServerFault, match="cannot be read"):
        ask(endpoint)


def test_a_client_that_was_closed_says_so(server: tuple[Answering, str]) -> None:
    answering, endpoint = server
    answering.contents, answering.outputs_left_out = FINE, 0
    client = GeneratorClient(endpoint, timeout_s=10)
    begun = client.stream("a red seven")
    client.close()
    for asked in (lambda: client.generate("a red seven"), lambda: next(begun)):
        with pytest.raises(Closed, match="make another"):
            asked()
    client.close()

    async def ask_closed() -> None:
        in_asyncio = AsyncGeneratorClient(endpoint, timeout_s=10)
        await in_asyncio.generate("a red seven")
        await in_asyncio.close()
        await in_asyncio.generate("a red seven")

    with pytest.raises(Closed, match="make another"):
        asyncio.run(ask_closed())


def test_a_request_under_way_is_cancelled_by_close(server: tuple[Answering, str]) -> None:
    answering, endpoint = server
    answering.held = True
    failed: list[GeneratorError] = []

    def waits(client: GeneratorClient) -> None:
        try:
            client.generate("a red seven")
        except GeneratorError as error:
            failed.append(error)

    client = GeneratorClient(endpoint, timeout_s=15)
    thread = threading.Thread(target=waits, args=(client,))
    while answering.asked.acquire(blocking=False):
        pass
    thread.start()
    assert answering.asked.acquire(timeout=10)
    client.close()
    thread.join(10)
    assert [type(error) for error in failed] == [Cancelled]

    async def closed_meanwhile() -> None:
        in_asyncio = AsyncGeneratorClient(endpoint, timeout_s=15)
        asking = asyncio.create_task(in_asyncio.generate("a red seven"))
        assert await asyncio.to_thread(answering.asked.acquire, timeout=10)
        await in_asyncio.close()
        await asking

    with pytest.raises(Cancelled):
        asyncio.run(closed_meanwhile())

"""The asyncio client on a real server."""

import asyncio
import socket
import time
from pathlib import Path

import pytest

from emuflow_client import AsyncGeneratorClient, GeneratorClient, InvalidRequest, Result, TimedOut, Unavailable
from serving.server import TritonServer

NAME = "asyncio"


@pytest.fixture(scope="module")
def endpoint(server: TritonServer, packages: dict[str, Path]) -> str:
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    return server.grpc_endpoint


def test_many_requests_at_once_get_the_images_of_the_plain_client(endpoint: str) -> None:
    async def ask() -> list[Result]:
        async with AsyncGeneratorClient(endpoint, timeout_s=30, model=NAME) as client:
            return await asyncio.gather(*(client.generate("a red seven", seed=seed) for seed in range(20)))

    results = asyncio.run(ask())
    with GeneratorClient(endpoint, timeout_s=30, model=NAME) as plain:
        for seed, result in enumerate(results):
            assert result.final and result.seed == seed
            assert (plain.generate("a red seven", seed=seed).image == result.image).all()


def test_stages_come_one_after_another_and_errors_have_their_types(endpoint: str) -> None:
    async def ask() -> list[str]:
        async with AsyncGeneratorClient(endpoint, timeout_s=30, model=NAME) as client:
            with pytest.raises(InvalidRequest, match="empty"):
                await client.generate("")
            return [stage.stage async for stage in client.stream("a red seven")]

    assert asyncio.run(ask()) == ["coarse", "final"]


def test_a_cancelled_task_cancels_its_request_and_no_other(endpoint: str) -> None:
    async def ask() -> Result:
        async with AsyncGeneratorClient(endpoint, timeout_s=30, model=NAME) as client:
            slow = [asyncio.create_task(client.generate("a red seven", coarse_steps=64)) for _ in range(30)]
            await asyncio.sleep(0.05)
            for task in slow:
                task.cancel()
            gone = await asyncio.gather(*slow, return_exceptions=True)
            assert any(isinstance(each, asyncio.CancelledError) for each in gone)
            return await client.generate("a blue nine", seed=4)

    assert asyncio.run(ask()).seed == 4


def test_no_server_is_unavailable_and_a_silent_one_times_out() -> None:
    async def ask(endpoint: str, timeout_s: float) -> None:
        async with AsyncGeneratorClient(endpoint, timeout_s=timeout_s, retries=2) as client:
            await client.generate("a red seven")

    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        start = time.monotonic()
        with pytest.raises(Unavailable):
            asyncio.run(ask(f"127.0.0.1:{nobody.getsockname()[1]}", 10))
        assert 0.15 <= time.monotonic() - start < 5  # pauses of .1 and .2 s, each up to a half shorter
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises((TimedOut, Unavailable)):
            asyncio.run(ask(f"127.0.0.1:{silent.getsockname()[1]}", 0.5))
    with pytest.raises(ValueError, match="timeout_s"):
        AsyncGeneratorClient("127.0.0.1:1", timeout_s=0)

"""The client library, where no server or no model answers."""

import ast
import asyncio
import socket
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

import emuflow_client
from emuflow_client import AsyncGeneratorClient, GeneratorClient, InvalidRequest, TimedOut, Unavailable
from serving.server import TritonServer


def test_no_server_is_unavailable_after_the_retries() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{nobody.getsockname()[1]}"
        with GeneratorClient(endpoint, timeout_s=10, retries=2) as client:
            start = time.monotonic()
            with pytest.raises(Unavailable):
                client.generate("a red seven")
            assert 0.15 <= time.monotonic() - start < 5  # pauses of .1 and .2 s, each up to a half shorter


def test_a_server_that_never_answers_times_out() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with GeneratorClient(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.5) as client:
            start = time.monotonic()
            with pytest.raises((TimedOut, Unavailable)):
                client.generate("a red seven")
            assert time.monotonic() - start < 2


def test_a_model_that_is_loaded_meanwhile_is_found_by_a_retry(server: TritonServer, packages: dict[str, Path]) -> None:
    loading = threading.Thread(target=server.load, args=(packages["int8"], "late"))
    with GeneratorClient(server.grpc_endpoint, timeout_s=20, model="late", retries=8) as client:
        loading.start()
        assert client.generate("a red seven").version == packages["int8"].name
    loading.join()


def test_one_client_serves_many_threads(server: TritonServer, packages: dict[str, Path]) -> None:
    server.load(packages["int8"], "generator")
    images = {}
    with GeneratorClient(server.grpc_endpoint, timeout_s=20) as client:

        def ask(seed: int) -> None:
            images[seed] = client.generate("a red seven", seed=seed, temperature=1.0)

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for seed, result in images.items():
            assert result.seed == seed
            assert (client.generate("a red seven", seed=seed, temperature=1.0).image == result.image).all()
    assert len({result.image.tobytes() for result in images.values()}) == 12


def test_a_request_that_is_over_leaves_nothing_in_the_server(server: TritonServer, packages: dict[str, Path]) -> None:
    """Triton keeps kilobytes of every stream that is cancelled, so one that was answered is read to its end."""
    server.load(packages["int8"], "generator")
    (triton,) = (
        process for process in psutil.Process(server.pid).children(recursive=True) if process.name() == "tritonserver"
    )

    async def ask_in_turn(count: int) -> None:
        async with AsyncGeneratorClient(server.grpc_endpoint, timeout_s=20) as client:
            for _ in range(count):
                await client.generate("a red seven")
                with pytest.raises(InvalidRequest):
                    await client.generate("")

    def ask(count: int) -> None:
        with GeneratorClient(server.grpc_endpoint, timeout_s=20) as client:
            for _ in range(count):
                client.generate("a red seven")
                with pytest.raises(InvalidRequest):
                    client.generate("")
        asyncio.run(ask_in_turn(count))

    ask(100)
    before = triton.memory_info().rss
    ask(300)
    assert triton.memory_info().rss - before < 1 << 20


def test_a_time_out_is_never_absent() -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        GeneratorClient("127.0.0.1:1", timeout_s=0)


def test_the_library_needs_tritonclient_and_numpy_alone() -> None:
    """`grpc` comes with `tritonclient[grpc]`."""
    allowed = {"numpy", "tritonclient", "grpc", "emuflow_client", *sys.stdlib_module_names}
    for path in Path(emuflow_client.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed

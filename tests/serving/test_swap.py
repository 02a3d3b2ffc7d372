"""A new package in the place of the old one, ten times over, while requests come as they come: none is lost."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.load import run_load
from serving.server import TritonServer

NAME = "swapped"
SWAPS = 10


def test_ten_swaps_at_half_the_capacity_lose_no_request(server: TritonServer, packages: dict[str, Path]) -> None:
    """The requests come at random times from a process of its own, whether or not earlier ones were answered."""
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    capacity = run_load(server.grpc_endpoint, NAME, clients=16, seconds=3)
    assert capacity.errors == []
    start = time.perf_counter()
    server.load(packages["fp32"], NAME, expected_digest=packages["fp32"].name)
    one_swap_s = time.perf_counter() - start
    seconds = 10 + 2 * SWAPS * max(1.0, one_swap_s)
    with ThreadPoolExecutor(1) as pool:
        start = time.perf_counter()
        asking = pool.submit(run_load, server.grpc_endpoint, NAME, rate=0.5 * capacity.images_per_s, seconds=seconds)
        time.sleep(3)
        for number in range(SWAPS):
            package = packages["int8" if number % 2 == 0 else "fp32"]
            server.load(package, NAME, expected_digest=package.name)
            assert not asking.done(), "the swaps are to happen under load"
            time.sleep(max(1.0, one_swap_s))
        swapped_s = time.perf_counter() - start
        load = asking.result()
    assert load.errors == []
    assert swapped_s < seconds, "the last swap came after the last request"
    assert len(load.image_ms) > 0.4 * capacity.images_per_s * seconds
    assert load.versions.keys() == {package.name for package in packages.values()}
    assert min(load.versions.values()) > 0.1 * len(load.image_ms)

"""A new package in the place of the old one, ten times over, while requests come as they come: none is lost."""

import time
from pathlib import Path

from benchmarks.load import load_until_ended, run_load
from serving.server import TritonServer
from tests.serving.served import eventually

NAME = "swapped"
SWAPS = 10


def test_ten_swaps_at_half_the_capacity_lose_no_request(server: TritonServer, packages: dict[str, Path]) -> None:
    """The requests come at random times from a process of its own, whether or not earlier ones were answered."""
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    capacity = run_load(server.grpc_endpoint, NAME, clients=16, seconds=3)
    assert capacity.errors == []
    asked = server.control.requests(NAME)
    with load_until_ended(server.grpc_endpoint, NAME, rate=0.5 * capacity.images_per_s) as end:
        eventually(lambda: server.control.requests(NAME) > asked + 10, timeout_s=60)
        for number in range(SWAPS):
            package = packages["fp32" if number % 2 == 0 else "int8"]
            server.load(package, NAME, expected_digest=package.name)
            time.sleep(1)
        load = end()
    assert load.errors == []
    assert len(load.image_ms) > 0.4 * capacity.images_per_s * load.seconds
    assert load.versions.keys() == {package.name for package in packages.values()}
    assert min(load.versions.values()) > 0.1 * len(load.image_ms)

"""A new package in the place of the old one, ten times over, while requests come as they come: none is lost."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.load import load_until_ended, run_load
from common.errors import ServerError
from emuflow_client import GeneratorClient, Result
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request
from serving.server import TritonServer
from tests.packages import change_and_sign
from tests.serving.served import eventually

NAME = "swapped"
SWAPS = 10
_DRAW = "1/engine/draw.onnx"


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


def test_the_old_package_draws_with_its_own_graphs_while_another_one_stands_in_its_place(
    server: TritonServer, packages: dict[str, Path]
) -> None:
    """Also with a graph that its defaults, of two steps, never ask: the first one who asks does so now."""
    before, after = packages["int8"], packages["fp32"]
    server.load(before, NAME, expected_digest=before.name)
    images = {}
    with GeneratorClient(server.grpc_endpoint, model=NAME) as client:

        def ask() -> Result:
            return client.generate("a red seven", seed=3, coarse_steps=1)

        with server.repository.replacing(after, NAME):
            images[before.name] = ask()
            server.control.load(NAME)
        images[after.name] = ask()
    for package in (before, after):
        assert images[package.name].version == package.name
        alone = Generator(package / "1").images(Request("a red seven", 3, 1, None, previews=False))
        np.testing.assert_array_equal(images[package.name].image, list(alone)[-1].pixels)
    assert (images[before.name].image != images[after.name].image).any()


def test_a_package_with_a_graph_that_cannot_be_read_is_not_loaded_though_its_defaults_never_ask_it(
    server: TritonServer, packages: dict[str, Path], key_folder: Path, tmp_path: Path
) -> None:
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    copy = Path(shutil.copytree(packages["fp32"], tmp_path / "broken"))
    broken = change_and_sign(copy, lambda package: (package / _DRAW).write_bytes(b"no graph"), key_folder)
    with pytest.raises(ServerError, match=r"draw\.onnx"):
        server.load(broken, NAME, expected_digest=broken.name)
    with GeneratorClient(server.grpc_endpoint, model=NAME) as client:
        assert client.generate("a red seven", coarse_steps=1).version == packages["int8"].name

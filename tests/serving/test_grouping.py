"""On a real server: requests that come together are drawn together, and get the images that they get alone; those that
are too many are told so."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emuflow_client import GeneratorClient, InvalidRequest, Result, Unavailable
from serving.server import TritonServer
from tests.packages import RUNTIME, build

NAME = "grouped"
PROMPTS = ["a red seven", "a blue nine above a yellow four", "a purple six", "a yellow eight"]


@pytest.fixture(scope="module")
def client(server: TritonServer, packages: dict[str, Path]):
    server.load(packages["int8"], NAME, expected_digest=packages["int8"].name)
    with GeneratorClient(server.grpc_endpoint, timeout_s=60, model=NAME, retries=0) as asked:
        yield asked


def test_images_of_a_group_are_those_drawn_alone(client: GeneratorClient) -> None:
    asked = [
        {"prompt": PROMPTS[number % 4], "seed": number, "coarse_steps": 8 if number % 3 else 2} for number in range(24)
    ]
    alone = [client.generate(**one) for one in asked]
    together = threading.Barrier(len(asked))

    def ask(one: dict) -> list[Result]:
        together.wait(timeout=30)
        return list(client.stream(**one))

    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(ask, asked))
    for one, by_itself, stages in zip(asked, alone, answers, strict=True):
        assert [stage.stage for stage in stages] == ["coarse", "final"]
        assert stages[-1].seed == one["seed"]
        np.testing.assert_array_equal(stages[-1].image, by_itself.image)


def test_one_that_is_cancelled_or_refused_takes_no_other_with_it(client: GeneratorClient) -> None:
    expected = client.generate("a red seven", seed=1, coarse_steps=32).image

    def ask(number: int) -> bool:
        if number % 3 == 0:
            stages = client.stream("a red seven", seed=number, coarse_steps=32)
            next(stages)
            stages.close()
            return True
        if number % 3 == 1:
            with pytest.raises(InvalidRequest, match="tokens"):
                client.generate("z y x " * 20, coarse_steps=32)
            return True
        return bool((client.generate("a red seven", seed=1, coarse_steps=32).image == expected).all())

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(48)))


def test_where_too_many_wait_one_more_is_refused_at_once_and_tried_again(
    server: TritonServer, engine: Path, package_store: Path, key_folder: Path
) -> None:
    narrow = build(engine, package_store, key_folder, runtime=replace(RUNTIME, largest_group=1, largest_queue=2))
    server.load(narrow, "narrow", expected_digest=narrow.name)

    def ask(client: GeneratorClient, number: int) -> str:
        try:
            client.generate("a red seven", seed=number, coarse_steps=64)
        except Unavailable as error:
            return str(error)
        return "answered"

    def ask_at_once(retries: int) -> list[str]:
        with (
            GeneratorClient(server.grpc_endpoint, timeout_s=60, model="narrow", retries=retries) as client,
            ThreadPoolExecutor(24) as pool,
        ):
            return list(pool.map(lambda number: ask(client, number), range(24)))

    once = ask_at_once(retries=0)
    assert set(once) == {"answered", "UNAVAILABLE: 2 requests wait already"} and once.count("answered") >= 3
    assert set(ask_at_once(retries=12)) == {"answered"}

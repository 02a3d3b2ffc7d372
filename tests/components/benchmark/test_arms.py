"""The client of one arm: it refuses another package's answers, and notices a server that dies."""

import asyncio
import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from common.errors import DigestMismatchError
from common.files import read_json, write_json
from components.benchmark.arms import ArmClient, Images, Question
from components.benchmark.evaluation import load_evaluation
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import NeighbourSettings
from components.benchmark.throughput import answer_in_turns, answered_by_all, first_answerable
from serving.server import TritonServer
from tests.components.benchmark.conftest import Workbench

QUESTION = Question("a red seven left of a green two", seed=5)
TOO_LONG = Question("x" * 10_000, seed=1)


def client_of(bench: Workbench, server: TritonServer, digest: str) -> ArmClient:
    return ArmClient("candidate", bench.package_store / bench.int8, digest, server.grpc_endpoint, timeout_s=10)


@pytest.fixture
def server(workbench: Workbench, tmp_path: Path):
    with TritonServer(tmp_path / "triton", workbench.key_folder) as running:
        running.load(workbench.package_store / workbench.int8, "candidate", expected_digest=workbench.int8)
        yield running


def test_an_answer_of_another_package_is_refused(workbench, server):
    asked = client_of(workbench, server, workbench.int8)
    assert asked.ask(QUESTION).shape == (64, 64, 3)
    with pytest.raises(DigestMismatchError, match="answered for"):
        client_of(workbench, server, workbench.fp32).ask(QUESTION)


def test_a_caption_that_the_generator_refuses_has_no_image(workbench, server):
    asked = client_of(workbench, server, workbench.int8)
    assert asked.ask_or_none(QUESTION) is not None and asked.ask_or_none(TOO_LONG) is None

    async def ask() -> Images:
        async with asked.asynchronous() as client:
            return await asked.ask_all([QUESTION, TOO_LONG, QUESTION], 2, client)

    first, refused, last = asyncio.run(ask())
    assert refused is None and np.array_equal(first, last) and np.array_equal(first, asked.ask(QUESTION))


def test_all_questions_stop_where_another_package_answers(workbench, server):
    asked = client_of(workbench, server, workbench.fp32)

    async def ask() -> Images:
        async with asked.asynchronous() as client:
            return await asked.ask_all([QUESTION] * 5, 2, client)

    with pytest.raises(DigestMismatchError, match="answered for"):
        asyncio.run(ask())


def test_throughput_counts_answers_and_gives_each_arm_its_turn_first(workbench, server):
    class Noting(ArmClient):
        async def ask_all(self, questions, at_once, client):
            turns.append((self.name, len(questions)))
            return await super().ask_all(questions, at_once, client)

    turns: list[tuple[str, int]] = []
    package = workbench.package_store / workbench.int8
    server.load(package, "twin", expected_digest=workbench.int8)
    arms = [Noting(name, package, workbench.int8, server.grpc_endpoint, timeout_s=10) for name in ("candidate", "twin")]
    questions = [QUESTION, TOO_LONG, Question("a purple six", 2), Question("a yellow eight", 3), QUESTION]
    with closing(ServerWatch(server.grpc_endpoint, server.pid)) as watch:
        images, chunks = answer_in_turns(arms, questions, 2, 2, NeighbourSettings(max_others_share=1), watch)
    order = [("candidate", 2), ("twin", 2), ("twin", 2), ("candidate", 2), ("candidate", 1), ("twin", 1)]
    assert turns == [("candidate", 2), ("twin", 2), *order]  # the first of each is not measured
    with closing(ServerWatch(server.grpc_endpoint, server.pid)) as watch:
        turns.clear()
        answer_in_turns(arms, questions[:2], 2, 2, NeighbourSettings(max_others_share=1), watch, earlier=3)
    assert turns[2:] == [("twin", 2), ("candidate", 2)]
    for name in ("candidate", "twin"):
        assert [chunk.images for chunk in chunks[name]] == [1, 2, 1]
        assert [image is None for image in images[name]] == [False, True, False, False, False]
    assert answered_by_all(questions, images) == [questions[i] for i in (0, 2, 3, 4)]
    assert first_answerable(arms[:1], [TOO_LONG, TOO_LONG, *questions], 2) == [QUESTION, *questions[2:4]]


def test_the_judges_answers_come_with_the_frozen_captions(workbench):
    evaluation = load_evaluation(workbench.evaluation_set, unjudged_captions=1)
    assert evaluation.expected is not None and evaluation.expected.shape == (len(evaluation.captions), 4, 2)


def test_an_evaluation_set_that_was_changed_is_refused(workbench, tmp_path):
    copy = tmp_path / "evaluation_set"
    shutil.copytree(workbench.evaluation_set, copy)
    frozen = read_json(copy / "evaluation.json")
    write_json(copy / "evaluation.json", {**frozen, "digest": "0" * 64})
    with pytest.raises(DigestMismatchError, match="not those that were frozen"):
        load_evaluation(copy, unjudged_captions=1)

"""Every arm answers every question, several clients at once, and the arms take turns.

The questions come in chunks, and each arm is asked each of them once: A B, then B A (ABC, then CBA for three arms), so
that no arm has the machine's better hour to itself. Each chunk is a throughput of its own; from their spread the gate
draws its interval.
"""

import asyncio
import itertools
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from components.benchmark.arms import ArmClient, Images, Question
from components.benchmark.measurements import ThroughputChunk
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import NeighbourSettings

Chunks = dict[str, list[ThroughputChunk]]


def answer_in_turns(
    arms: Sequence[ArmClient],
    questions: Sequence[Question],
    chunk_questions: int,
    clients: int,
    calm: NeighbourSettings,
    watch: ServerWatch,
    earlier: int = 0,
) -> tuple[dict[str, Images], Chunks]:
    """The images of each arm, by name, in the order of `questions`, and how long each chunk took.

    The arms must be warm. After so many `earlier` chunks the mirrored order goes on where it was. A chunk counts the images, not the questions: a refusal costs next to nothing.
    """
    return asyncio.run(_answer_in_turns(arms, questions, chunk_questions, clients, calm, watch, earlier))


async def _answer_in_turns(
    arms: Sequence[ArmClient],
    questions: Sequence[Question],
    chunk_questions: int,
    at_once: int,
    calm: NeighbourSettings,
    watch: ServerWatch,
    earlier: int,
) -> tuple[dict[str, Images], Chunks]:
    images: dict[str, Images] = {arm.name: [] for arm in arms}
    chunks: Chunks = {arm.name: [] for arm in arms}
    orders = itertools.islice(itertools.cycle((arms, arms[::-1])), earlier % 2, None)
    async with AsyncExitStack() as stack:
        clients = {arm.name: await stack.enter_async_context(arm.asynchronous()) for arm in arms}
        for arm in arms:  # the connections and their first streams are no part of a measurement
            await arm.ask_all(questions[:at_once], at_once, clients[arm.name])
        neighbours = Neighbours(watch.cpu_s)
        for start in range(0, len(questions), chunk_questions):
            chunk, seconds = questions[start : start + chunk_questions], {}
            for arm in next(orders):
                started = time.perf_counter()
                images[arm.name] += await arm.ask_all(chunk, at_once, clients[arm.name])
                seconds[arm.name] = time.perf_counter() - started
            disturbed = are_disturbing(calm, neighbours.shares())
            for name, taken in seconds.items():
                answered = _answered(images[name][start:])
                chunks[name].append(ThroughputChunk(images=answered, seconds=taken, disturbed=disturbed))
    return images, chunks


def first_answerable(arms: Sequence[ArmClient], questions: Sequence[Question], count: int) -> list[Question]:
    """The first questions that every arm answers, at least `count` of them where there are so many."""
    found: list[Question] = []
    for start in range(0, len(questions), count):
        part = questions[start : start + count]
        found += answered_by_all(part, {arm.name: [arm.ask_or_none(each) for each in part] for arm in arms})
        if len(found) >= count:
            break
    return found


def answered_by_all(questions: Sequence[Question], answers: Mapping[str, Images]) -> list[Question]:
    """Without those that an arm refuses, such as a caption that is too long for it."""
    rows = zip(*answers.values(), strict=True)
    return [question for question, row in zip(questions, rows, strict=True) if all(image is not None for image in row)]


def _answered(images: Images) -> int:
    return sum(image is not None for image in images)

"""Latency under open load: requests at random times (Poisson), whether or not earlier ones were answered.

A client that waits for each answer before it asks again spares a server that stalls; here a latency counts from when its
request was due (coordinated omission: Tene, "How NOT to Measure Latency"). All arms get the same rate, a share of what the
slowest of them gave when it was asked without a pause, in turns and in mirrored order.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from components.benchmark.arms import ArmClient, Question
from components.benchmark.measurements import OpenLoad
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import NeighbourSettings, OpenLoadSettings
from emuflow_client import GeneratorError


@dataclass
class Answers:
    """What came of the requests so far."""

    image_ms: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0


def measure_open_load(
    settings: OpenLoadSettings,
    calm: NeighbourSettings,
    arms: Sequence[ArmClient],
    questions: Sequence[Question],
    images_per_s: float,
    watch: ServerWatch,
    seed: int,
) -> dict[str, OpenLoad]:
    """Each arm's answers, by name; `images_per_s` is what every arm can give."""
    rate = settings.share * images_per_s
    seconds = max(settings.chunk_seconds, settings.min_requests / max(1, settings.chunks) / rate)
    answers, neighbours = {arm.name: Answers() for arm in arms}, Neighbours(watch.cpu_s)
    for number in range(settings.chunks):
        due = _due(rate, seconds, seed + number)
        for arm in arms if number % 2 == 0 else arms[::-1]:
            asyncio.run(_ask(arm, questions, due, answers[arm.name]))
    disturbed = are_disturbing(calm, neighbours.shares())
    return {
        name: OpenLoad(
            offered_per_s=rate, seconds=each.seconds, image_ms=each.image_ms, errors=each.errors, disturbed=disturbed
        )
        for name, each in answers.items()
    }


def _due(rate: float, seconds: float, seed: int) -> list[float]:
    """Seconds after the start at which requests are due: a Poisson process, the same for every arm."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 9)
    moments = gaps.cumsum()
    return moments[moments < seconds].tolist()


async def _ask(arm: ArmClient, questions: Sequence[Question], due: Sequence[float], answers: Answers) -> None:
    async with arm.asynchronous() as client:
        await client.generate(questions[0].caption, seed=questions[0].seed)  # connects
        start = time.perf_counter()

        async def one(moment: float, question: Question) -> None:
            try:
                result = await client.generate(question.caption, seed=question.seed)
            except GeneratorError:
                answers.errors += 1
                return
            arm.check(result)
            answers.image_ms.append(1000 * (time.perf_counter() - start - moment))

        running = []
        for number, moment in enumerate(due):
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            running.append(asyncio.create_task(one(moment, questions[number % len(questions)])))
        await asyncio.gather(*running)
        answers.seconds += time.perf_counter() - start

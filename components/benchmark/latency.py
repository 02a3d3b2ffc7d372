"""Latency of several arms side by side: in each round every arm's block once, and once more in the opposite order.

The mirrored order (ABBA; ABCCBA for three arms) cancels a drift of the machine within a round; which arm begins is drawn
for each round, so that none always follows the same other one. All blocks of a round ask the same questions.
"""

import itertools
import random
from collections.abc import Sequence

from components.benchmark.arms import ArmClient, Question
from components.benchmark.machine import MachineStates
from components.benchmark.measurements import CANDIDATE, CHAMPION, LatencyBlock, rounds
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import LatencySettings
from components.benchmark.statistics import Bootstrap

Blocks = dict[str, list[LatencyBlock]]
_PRECISION = Bootstrap(confidence=0.95, resamples=500, seed=0)


def measure_latency(
    settings: LatencySettings, arms: Sequence[ArmClient], questions: Sequence[Question], watch: ServerWatch, seed: int
) -> Blocks:
    """Blocks of each arm, by name. One client, one request at a time.

    Between `min_rounds` and `max_rounds`: with a champion until the interval of the p95 ratio is narrow. How wide it is
    ends the rounds, never on which side of a bound it lies, so stopping does not favour a result.
    """
    blocks: Blocks = {arm.name: [] for arm in arms}
    asked, order, machine = itertools.cycle(questions), random.Random(seed), MachineStates()
    for index in range(settings.max_rounds):
        if index >= settings.min_rounds and _is_precise(settings, blocks):
            break
        turn = order.sample(list(arms), len(arms))
        for half in (turn, turn[::-1]):
            chosen = list(itertools.islice(asked, settings.block_requests))
            previewed = list(itertools.islice(asked, settings.block_previews))
            for arm in half:
                blocks[arm.name].append(_block(index, arm, chosen, previewed, watch, machine))
    return blocks


def _block(
    index: int,
    arm: ArmClient,
    questions: list[Question],
    previewed: list[Question],
    watch: ServerWatch,
    machine: MachineStates,
) -> LatencyBlock:
    before = watch.counters(arm.name)
    timed = [arm.timed(question) for question in questions]
    previews: list[float | None] = [arm.preview_ms(question) for question in previewed]
    queue_ms, compute_ms = watch.counters(arm.name).mean_since(before)
    return LatencyBlock(
        round=index,
        samples_ms=[each.image_ms for each in timed],
        server_ms=[each.server_ms for each in timed],
        preview_ms=previews,
        triton_queue_ms=queue_ms,
        triton_compute_ms=compute_ms,
        machine=machine.now(),
    )


def _is_precise(settings: LatencySettings, blocks: Blocks) -> bool:
    if CHAMPION not in blocks:
        return True
    ours, theirs = (_numbers(rounds(blocks[name])) for name in (CANDIDATE, CHAMPION))
    interval = _PRECISION.quantile_ratio(ours, theirs, 0.95)
    return (interval.high - interval.low) / 2 <= settings.ratio_half_width


def _numbers(samples: list[list[float | None]]) -> list[list[float]]:
    return [[value for value in each if value is not None] for each in samples]

"""Latency of several arms side by side: in each round every arm's block once, and once more in the opposite order.

The mirrored order (ABBA; ABCCBA for three arms) cancels a drift of the machine within a round; which arm begins is drawn
for each round, so that none always follows the same other one. All blocks of a round ask the same questions.

What the full precision takes, and how far two loads of the champion differ, need no narrow interval: after some rounds only
the candidate and the champion are timed, so that as much time tells twice as much of them.

A round in which others had the processors is measured again, after a pause; see `neighbours.py`.
"""

import itertools
import random
import time
from collections.abc import Sequence

from components.benchmark.arms import ArmClient, Question
from components.benchmark.machine import MachineStates
from components.benchmark.measurements import CANDIDATE, CHAMPION, LatencyBlock, rounds
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import LatencySettings, NeighbourSettings
from components.benchmark.statistics import Bootstrap

Blocks = dict[str, list[LatencyBlock]]
_PRECISION = Bootstrap(confidence=0.95, resamples=500, seed=0)


def measure_latency(
    settings: LatencySettings,
    calm: NeighbourSettings,
    arms: Sequence[ArmClient],
    questions: Sequence[Question],
    watch: ServerWatch,
    seed: int,
) -> Blocks:
    """Blocks of each arm, by name. One client, one request at a time.

    Between `min_rounds` and `max_rounds`: with a champion until the intervals of both ratios are narrow. How wide they are
    ends the rounds, never on which side of a bound it lies, so stopping does not favour a result. Disturbed rounds are
    kept and marked, do not count, and end the measurement where there are too many.
    """
    blocks: Blocks = {arm.name: [] for arm in arms}
    asked, order, machine = itertools.cycle(questions), random.Random(seed), MachineStates()
    quiet, disturbed = 0, 0
    while quiet < settings.max_rounds and disturbed < calm.max_disturbed_rounds:
        if quiet >= settings.min_rounds and _is_precise(settings, blocks):
            break
        timed = [arm for arm in arms if quiet < settings.full_rounds or arm.name in (CANDIDATE, CHAMPION)]
        turn, in_round, neighbours = order.sample(timed, len(timed)), [], Neighbours(watch.cpu_s)
        for half in (turn, turn[::-1]):
            chosen = list(itertools.islice(asked, settings.block_requests))
            previewed = list(itertools.islice(asked, settings.block_previews))
            in_round += [(arm.name, _block(quiet + disturbed, arm, chosen, previewed, watch, machine)) for arm in half]
        shares = neighbours.shares()
        disturbs = are_disturbing(calm, shares)
        for name, block in in_round:
            blocks[name].append(block.model_copy(update={"processors": shares, "disturbed": disturbs}))
        if disturbs:
            disturbed += 1
            time.sleep(calm.pause_s)
        else:
            quiet += 1
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
    limits = {0.50: settings.median_half_width, 0.95: settings.ratio_half_width}
    intervals = {quantile: _PRECISION.quantile_ratio(ours, theirs, quantile) for quantile in limits}
    return all((each.high - each.low) / 2 <= limits[quantile] for quantile, each in intervals.items())


def _numbers(samples: list[list[float | None]]) -> list[list[float]]:
    return [[value for value in each if value is not None] for each in samples]

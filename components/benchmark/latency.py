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
from components.benchmark.looks import Standing, latencies
from components.benchmark.machine import MachineStates
from components.benchmark.measurements import CANDIDATE, CHAMPION, LatencyBlock, rounds
from components.benchmark.neighbours import Neighbours, are_disturbing
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import DecidingBounds, LatencySettings, NeighbourSettings
from components.benchmark.statistics import Bootstrap

Blocks = dict[str, list[LatencyBlock]]
_PRECISION = Bootstrap(confidence=0.95, resamples=500, seed=0)
_LOOK_EVERY = 8
"""Rounds, after the least."""


class Timing:
    """Blocks of each arm, by name. One client, one request at a time.

    First the `least` rounds, then, where somebody wants to know more, the `rest`: with a champion until the intervals of
    both ratios are narrow, or until one of the `bounds` is surely broken, or both are surely kept (`looks.py`), or there are
    `max_rounds`. Disturbed rounds are kept and marked, do not count, and end the measurement where there are too many.
    """

    def __init__(
        self,
        settings: LatencySettings,
        calm: NeighbourSettings,
        arms: Sequence[ArmClient],
        questions: Sequence[Question],
        watch: ServerWatch,
        seed: int,
        bounds: DecidingBounds | None = None,
    ):
        self.blocks: Blocks = {arm.name: [] for arm in arms}
        self._settings, self._calm, self._arms, self._watch, self._bounds = settings, calm, arms, watch, bounds
        self._asked, self._order = itertools.cycle(questions), random.Random(seed)
        self._machine, self._quiet, self._disturbed = MachineStates(), 0, 0

    def least(self) -> None:
        """Measure `min_rounds` quiet ones."""
        while self._quiet < self._settings.min_rounds and not self._disturbs():
            self._round()

    def rest(self) -> None:
        """Measure on for as long as that might tell something."""
        while self._quiet < self._settings.max_rounds and not self._disturbs() and not self._told():
            self._round()

    def standing(self) -> Standing:
        """What the quiet rounds say for sure; open where there are too few of them, or nothing to compare with."""
        if self._bounds is None or CHAMPION not in self.blocks or self._quiet < self._settings.min_rounds:
            return Standing.OPEN
        return latencies(self._bounds, *_compared(self.blocks))

    def _disturbs(self) -> bool:
        return self._disturbed >= self._calm.max_disturbed_rounds

    def _told(self) -> bool:
        """Bounds are looked at seldom: each look might be wrong by chance."""
        looks = (self._quiet - self._settings.min_rounds) % _LOOK_EVERY == 0
        return _is_precise(self._settings, self.blocks) or (looks and self.standing() is not Standing.OPEN)

    def _round(self) -> None:
        settings, number = self._settings, self._quiet + self._disturbed
        timed = [arm for arm in self._arms if self._quiet < settings.full_rounds or arm.name in (CANDIDATE, CHAMPION)]
        turn, in_round, neighbours = self._order.sample(timed, len(timed)), [], Neighbours(self._watch.cpu_s)
        for half in (turn, turn[::-1]):
            chosen = list(itertools.islice(self._asked, settings.block_requests))
            previewed = list(itertools.islice(self._asked, settings.block_previews))
            in_round += [(arm.name, _block(number, arm, chosen, previewed, self._watch, self._machine)) for arm in half]
        shares = neighbours.shares()
        disturbs = are_disturbing(self._calm, shares)
        for name, block in in_round:
            self.blocks[name].append(block.model_copy(update={"processors": shares, "disturbed": disturbs}))
        if disturbs:
            self._disturbed += 1
            time.sleep(self._calm.pause_s)
        else:
            self._quiet += 1


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


def _compared(blocks: Blocks) -> tuple[list[list[float]], list[list[float]]]:
    ours, theirs = (_numbers(rounds(blocks[name])) for name in (CANDIDATE, CHAMPION))
    return ours, theirs


def _is_precise(settings: LatencySettings, blocks: Blocks) -> bool:
    if CHAMPION not in blocks:
        return True
    ours, theirs = _compared(blocks)
    limits = {0.50: settings.median_half_width, 0.95: settings.ratio_half_width}
    intervals = {quantile: _PRECISION.quantile_ratio(ours, theirs, quantile) for quantile in limits}
    return all((each.high - each.low) / 2 <= limits[quantile] for quantile, each in intervals.items())


def _numbers(samples: list[list[float | None]]) -> list[list[float]]:
    return [[value for value in each if value is not None] for each in samples]

"""Gates drawn again from live ones: whole launches, and within a launch its rounds, chunks and captions.

What differs from launch to launch (where a process lies in memory, which core it got) is the same for all rounds of one
launch, so a launch stays whole: its arms are drawn together, and never one launch's candidate against another one's
champion. So is how many of its rounds other processes disturbed, which decides whether its latencies tell anything: those
rounds are kept as they are, marked, and the quiet ones are drawn among themselves.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from multiprocessing import get_context

import numpy as np

from components.benchmark.measurements import CANDIDATE, CHAMPION, Arm, LatencyBlock, Measurements
from components.gate.gate import judge
from components.gate.quality import quality_vs_champion
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from components.judge.reading import Correctness

_SEED = 0


def resampled(launches: Sequence[Measurements], policy: GateSettings, count: int) -> Counter[Result]:
    """The verdicts on `count` gates that are drawn from the live ones."""
    valid = [launch for launch in launches if launch.status == "VALID"]
    if not valid:
        return Counter()
    seeds, workers = np.random.SeedSequence(_SEED).spawn(count), len(os.sched_getaffinity(0))
    parts = [seeds[number::workers] for number in range(workers)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return sum(pool.map(_drawn, repeat(valid), repeat(policy), parts), Counter())


def _drawn(
    launches: Sequence[Measurements], policy: GateSettings, seeds: Sequence[np.random.SeedSequence]
) -> Counter[Result]:
    """One verdict for each seed, so that they do not depend on who draws which."""
    results: Counter[Result] = Counter()
    for seed in seeds:
        random = np.random.default_rng(seed)
        results[judge(policy, _redrawn(launches[random.integers(len(launches))], random), "").result] += 1
    return results


def alike_in_quality(launches: Sequence[Measurements], policy: GateSettings) -> Counter[Result]:
    """What the accuracy check says of one champion against itself under other seeds: of two launches each that asked as
    often, and no launch twice, so that the results are independent."""
    alike: defaultdict[int, list[Measurements]] = defaultdict(list)
    for launch in launches:
        if CHAMPION in launch.arms and launch.arms[CHAMPION].correctness:
            alike[launch.seeds_per_caption].append(launch)
    results: Counter[Result] = Counter()
    for ours, theirs in chain.from_iterable(zip(each[::2], each[1::2], strict=False) for each in alike.values()):
        arms = {CANDIDATE: ours.arms[CHAMPION], CHAMPION: theirs.arms[CHAMPION]}
        found = quality_vs_champion(policy, ours.model_copy(update={"arms": arms}))
        results.update(check.result for check in found if check.name == "accuracy_vs_champion")
    return results


def _redrawn(launch: Measurements, random: np.random.Generator) -> Measurements:
    captions = random.integers(len(launch.captions), size=len(launch.captions))
    order = _redrawn_rounds(launch.arms[CANDIDATE].latency_blocks, random)
    arms = {name: _redrawn_arm(arm, captions, order, launch.seeds_per_caption) for name, arm in launch.arms.items()}
    return launch.model_copy(update={"arms": arms})


def _redrawn_rounds(timed: Sequence[LatencyBlock], random: np.random.Generator) -> list[int]:
    """Numbers of rounds: as many quiet ones as there were, drawn with replacement, then the disturbed ones."""
    disturbed = {block.round: block.disturbed for block in timed}
    quiet = sorted(number for number, of_others in disturbed.items() if not of_others)
    return [*random.choice(quiet, size=len(quiet)).tolist(), *sorted(disturbed.keys() - set(quiet))]


def _redrawn_arm(arm: Arm, captions: np.ndarray, order: Sequence[int], seeds: int) -> Arm:
    timed: defaultdict[int, list[LatencyBlock]] = defaultdict(list)
    for block in arm.latency_blocks:
        timed[block.round].append(block)
    blocks = [
        block.model_copy(update={"round": place})
        for place, number in enumerate(order)
        for block in timed[number]  # not every arm is timed in every round
    ]
    update: dict[str, object] = {"latency_blocks": blocks}
    if arm.correctness is not None:
        given = {
            name: np.array(getattr(arm.correctness, name)).reshape(seeds, -1)[:, captions].ravel().tolist()
            for name in ("digit", "colour", "position")
        }
        update["correctness"] = Correctness(**given)
    return arm.model_copy(update=update)

"""When a benchmark has seen enough, and how seldom a look is wrong."""

import numpy as np
import pytest

from components.benchmark.looks import Standing, accuracy_loss_int8, accuracy_vs_champion, latencies, together
from components.benchmark.settings import BenchmarkSettings, DecidingBounds
from components.gate.settings import GateSettings
from pipelines.settings import MeasurementSettings, Settings, load

BOUNDS = DecidingBounds(max_p50_ratio=1.10, max_p95_ratio=1.25, accuracy_margin=0.01, max_accuracy_loss_int8=0.01)
CAPTIONS = 746


def looked_at(slower: float, *, rounds_timed: int = 16, seed: int = 0) -> Standing:
    """A candidate that takes `slower` times as long as the champion; each round has a mood of its own, which both share."""
    random = np.random.default_rng(seed)
    moods = random.lognormal(0, 0.1, rounds_timed)
    theirs = [(6 * mood * random.lognormal(0, 0.12, 20)).tolist() for mood in moods]
    ours = [(6 * slower * mood * random.lognormal(0, 0.12, 20)).tolist() for mood in moods]
    return latencies(BOUNDS, ours, theirs)


def test_a_latency_is_clear_far_from_its_bound_and_open_near_it() -> None:
    assert looked_at(1.0) is Standing.KEPT
    assert looked_at(1.3) is Standing.BROKEN
    assert looked_at(1.1) is Standing.OPEN
    assert latencies(BOUNDS, [[6.0] * 20], [[3.0] * 20]) is Standing.OPEN  # one round has no spread


@pytest.mark.parametrize("rounds_timed", [16, 32])
def test_a_look_at_a_candidate_that_lies_on_the_bound_is_hardly_ever_wrong(rounds_timed: int) -> None:
    """200 candidates that the bound neither allows nor forbids: of each look 0.1% would be called clear."""
    found = [looked_at(1.1, rounds_timed=rounds_timed, seed=seed) for seed in range(200)]
    assert sum(each is not Standing.OPEN for each in found) <= 2


def shares(accuracy: float, seeds: int, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random((seeds, CAPTIONS)) < accuracy).mean(0).tolist()


def test_an_accuracy_is_clear_where_more_answers_would_not_move_it_over_the_margin() -> None:
    same = shares(0.96, 3, 0)
    assert accuracy_vs_champion(BOUNDS, same, same) is Standing.KEPT
    assert accuracy_vs_champion(BOUNDS, shares(0.88, 3, 1), same) is Standing.BROKEN
    assert accuracy_vs_champion(BOUNDS, shares(0.955, 3, 1), same) is Standing.OPEN
    assert accuracy_loss_int8(BOUNDS, same, same) is Standing.KEPT
    assert accuracy_loss_int8(BOUNDS, shares(0.95, 1, 1), shares(0.96, 1, 2)) is Standing.OPEN


def test_looks_at_a_model_that_is_just_as_bad_as_the_margin_allows_are_hardly_ever_wrong() -> None:
    """80 of them, six looks each: after three to eight answers of each caption."""
    wrong = 0
    for number in range(80):
        random = np.random.default_rng(number)
        ours, theirs = ((random.random((8, CAPTIONS)) < accuracy) for accuracy in (0.95, 0.96))
        looks = [
            accuracy_vs_champion(BOUNDS, ours[:n].mean(0).tolist(), theirs[:n].mean(0).tolist()) for n in range(3, 9)
        ]
        wrong += any(look is not Standing.OPEN for look in looks)
    assert wrong <= 3  # 0.1% a look: half a one is expected at the most


def test_one_broken_bound_decides_and_one_open_bound_leaves_open() -> None:
    kept, broken, left = Standing.KEPT, Standing.BROKEN, Standing.OPEN
    assert together([kept, left, broken]) is broken and together([kept, left]) is left and together([kept]) is kept


def test_a_run_tells_its_benchmark_what_its_gate_will_ask() -> None:
    gate = GateSettings.model_validate({"champion": {"max_p50_ratio": 1.3}})
    for settings in (load("smoke").model_copy(update={"gate": gate}), MeasurementSettings(gate=gate)):
        assert isinstance(settings, Settings | MeasurementSettings)
        told = BenchmarkSettings.parse_json(settings.section_parameters()["benchmark_settings"])
        assert told.bounds == gate.deciding and told.bounds.max_p50_ratio == 1.3
    own = BenchmarkSettings(bounds=BOUNDS)
    kept = MeasurementSettings(benchmark=own, gate=gate).section_parameters()["benchmark_settings"]
    assert BenchmarkSettings.parse_json(kept).bounds == BOUNDS


def test_as_many_seeds_as_asked_for_where_nothing_can_be_decided() -> None:
    assert BenchmarkSettings().most_seeds_per_caption == 3
    assert BenchmarkSettings(bounds=BOUNDS).most_seeds_per_caption == 8
    assert BenchmarkSettings(bounds=BOUNDS, seeds_per_caption=12).most_seeds_per_caption == 12

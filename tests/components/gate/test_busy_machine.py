"""Fault 17: a noisy neighbour during the benchmark. Nothing is told from what it disturbed."""

import numpy as np
import pytest

from components.benchmark.measurements import CANDIDATE, CHAMPION, CONTROL, LatencyBlock, Measurements
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Result, Verdict
from tests.evidence import arm, disturbed_from, latency, measurements, with_candidate


def verdict_on(measured: Measurements) -> Verdict:
    return judge(GateSettings(bootstrap_resamples=400), measured, "0" * 64)


@pytest.mark.parametrize("slower", [0.5, 1.0, 1.05, 3.0])
def test_fault_17_rounds_in_which_others_had_the_processors_do_not_count(slower: float) -> None:
    """Where most are such, none counts: neither for a model nor against one that is much slower."""
    record = measurements(p50_ms=5.0 * slower, champion=arm(CHAMPION, 0.94, 5.0, seed=3))
    quiet, busy = verdict_on(disturbed_from(9, record)), verdict_on(disturbed_from(5, record))
    assert quiet.result is (Result.FAIL if slower > 1.1 else Result.PASS)
    assert quiet.reported["disturbed_rounds"] == 3
    assert {each.n for each in quiet.checks if each.name == "p50_ratio_vs_champion"} == {9 * 24}
    assert busy.result is Result.INCONCLUSIVE
    told = [each for each in busy.checks if each.kind == "latency"]
    assert len(told) == 7 and all("in 7 of 12 rounds" in each.reason for each in told)


def test_fault_17_a_worse_image_is_one_on_a_busy_machine_too() -> None:
    record = measurements(accuracy=0.7, champion=arm(CHAMPION, 0.94, 6.0, seed=3))
    assert verdict_on(disturbed_from(0, record)).result is Result.FAIL


@pytest.mark.parametrize(("errors", "result"), [(0, Result.PASS), (9, Result.INCONCLUSIVE)])
def test_fault_17_requests_lost_beside_others_are_not_held_against_it(errors: int, result: Result) -> None:
    record = measurements()
    load = record.arms[CANDIDATE].open_load
    assert load is not None
    lost = load.model_copy(update={"errors": errors, "disturbed": True})
    assert verdict_on(with_candidate(record, open_load=lost)).result is result
    undisturbed = lost.model_copy(update={"disturbed": False})
    assert verdict_on(with_candidate(record, open_load=undisturbed)).result is (Result.FAIL if errors else Result.PASS)


def slowed(p50_ms: float, *, seed: int) -> list[LatencyBlock]:
    """From the middle on a block takes once to eight times as long, and no counter tells why."""
    random, blocks = np.random.default_rng(seed), latency(p50_ms, seed=seed)
    for number in range(len(blocks) // 2, len(blocks)):
        slower = random.uniform(1, 8)
        times = {"samples_ms": blocks[number].samples_ms, "preview_ms": blocks[number].preview_ms}
        update = {name: [value * slower for value in each if value] for name, each in times.items()}
        blocks[number] = blocks[number].model_copy(update=update)
    return blocks


@pytest.mark.parametrize(("slower", "wrong"), [(1.0, Result.FAIL), (1.15, Result.PASS)])
def test_fault_17_a_disturbance_that_no_counter_tells_gives_no_wrong_verdict(slower: float, wrong: Result) -> None:
    """Most often none at all: INCONCLUSIVE."""
    results = []
    for seed in range(20):
        record = measurements(champion=arm(CHAMPION, 0.94, 6.0, seed=3))
        arms = {
            **record.arms,
            CHAMPION: record.arms[CHAMPION].model_copy(update={"latency_blocks": slowed(3.0, seed=10 + seed)}),
            CONTROL: record.arms[CONTROL].model_copy(update={"latency_blocks": []}),
        }
        blocks = slowed(3.0 * slower, seed=100 + seed)
        results.append(
            verdict_on(with_candidate(record.model_copy(update={"arms": arms}), latency_blocks=blocks)).result
        )
    assert wrong not in results and results.count(Result.INCONCLUSIVE) > 10


@pytest.mark.parametrize(("disturbed", "result"), [(10, Result.FAIL), (11, Result.INCONCLUSIVE)])
def test_fault_17_a_throughput_beside_others_decides_nothing(disturbed: int, result: Result) -> None:
    """Of both arms, as they are asked in turns; the quiet chunks alone count."""
    record = measurements(champion=arm(CHAMPION, 0.94, 6.0, seed=3))
    arms = {
        name: each.model_copy(
            update={
                "throughput_chunks": [
                    chunk.model_copy(
                        update={
                            "disturbed": index < disturbed,
                            "seconds": chunk.seconds * (1.5 if name == CANDIDATE and index >= disturbed else 1),
                        }
                    )
                    for index, chunk in enumerate(each.throughput_chunks)
                ]
            }
        )
        for name, each in record.arms.items()
    }
    verdict = verdict_on(record.model_copy(update={"arms": arms}))
    [found] = [each for each in verdict.checks if each.name == "throughput_ratio_vs_champion"]
    assert (found.result, verdict.result) == (result, result)
    assert found.value == pytest.approx(1 / 1.5, rel=0.01) and found.n == 20 - disturbed

"""What the benchmark of the gate makes of live gates; a live one is among the slow tests."""

import io
import json
import os
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from benchmarks import gate
from benchmarks.gate_checks import DAMAGED, HOG, HOG_SLOW, SAME, SLIGHTLY_SLOW, SLOW, Gate, all_checks
from benchmarks.gate_packages import Candidate, PackageMaker
from benchmarks.gate_resampling import alike_in_quality, resampled
from common.errors import GateError
from common.files import write_json
from common.progress import PROGRESS_VARIABLE, enter_phase
from components.benchmark.measurements import CHAMPION, CONTROL, Measurements
from components.benchmark.settings import BenchmarkSettings
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from serving.package.verify import verify
from tests.engines import write_engine
from tests.evidence import arm, correctness, disturbed_from, latency, measurements
from tests.packages import build

POLICY = GateSettings(bootstrap_resamples=200)


def launch(p50_ms: float, *, slower: float = 1.0) -> Measurements:
    return measurements(p50_ms=p50_ms * slower, champion=arm(CHAMPION, 0.94, p50_ms, seed=7))


def live(measured: Measurements) -> Gate:
    return Gate(measured, judge(POLICY, measured, ""), judge(POLICY, measured, ""))


def test_a_launch_stays_whole_when_it_is_drawn_again() -> None:
    """One launch was twice as fast as the other: its candidate never meets the other one's champion."""
    drawn = resampled([launch(4.0), launch(8.0)], POLICY, 40)
    assert drawn.total() == 40 and drawn[Result.FAIL] == 0 and drawn[Result.PASS] > 30
    slow = resampled([launch(4.0, slower=1.5), launch(8.0, slower=1.5)], POLICY, 20)
    assert slow[Result.FAIL] == 20


def test_arms_that_were_timed_in_fewer_rounds_are_drawn_with_the_rounds_they_have() -> None:
    """The champion's second load is slow in the rounds that it was timed in, so that no gate can be judged."""
    measured = launch(4.0)
    slow = [block for block in latency(8.0, seed=9) if block.round < 8]
    again = measured.arms[CONTROL].model_copy(update={"latency_blocks": slow})
    unfit = measured.model_copy(update={"arms": measured.arms | {CONTROL: again}})
    assert resampled([unfit], POLICY, 20) == {Result.INVALID: 20}
    fit = measured.arms[CONTROL].latency_blocks[:16]
    few = measured.arms[CONTROL].model_copy(update={"latency_blocks": fit})
    drawn = resampled([measured.model_copy(update={"arms": measured.arms | {CONTROL: few}})], POLICY, 20)
    assert drawn[Result.PASS] > 15 and drawn.total() == 20


@pytest.mark.parametrize("slower", [1.0, 1.5])
def test_a_launch_keeps_its_share_of_disturbed_rounds_when_it_is_drawn_again(slower: float) -> None:
    """Five quiet rounds of twelve tell nothing live, and nothing when they are drawn again."""
    busy = disturbed_from(5, launch(4.0, slower=slower))
    assert judge(POLICY, busy, "").result is Result.INCONCLUSIVE
    assert resampled([busy], POLICY, 10) == {Result.INCONCLUSIVE: 10}
    enough = disturbed_from(9, launch(4.0, slower=slower))
    assert resampled([enough], POLICY, 10)[Result.PASS if slower == 1 else Result.FAIL] >= 8


def test_an_invalid_launch_is_not_drawn() -> None:
    invalid = launch(8.0, slower=2).model_copy(update={"status": "INVALID", "reasons": ["it died"]})
    assert resampled([launch(4.0), invalid], POLICY, 20)[Result.FAIL] == 0
    assert resampled([invalid], POLICY, 20).total() == 0


def test_a_champions_accuracy_is_compared_with_its_own_in_another_launch() -> None:
    """Three launches make one pair; a champion that is worse in one of two would be called so."""

    def accurate(share: float, seed: int):
        champion = arm(CHAMPION, share, 4.0).model_copy(update={"correctness": correctness(share, seed=seed)})
        return measurements(champion=champion)

    assert alike_in_quality([accurate(0.94, seed) for seed in range(3)], POLICY).total() == 1
    assert alike_in_quality([accurate(0.70, 0), accurate(0.94, 1)], POLICY) == {Result.FAIL: 1}
    assert alike_in_quality([accurate(0.99, 0), accurate(0.70, 1)], POLICY) == {Result.PASS: 1}


def test_only_launches_that_asked_as_often_are_compared() -> None:
    def asked(seeds: int):
        champion = arm(CHAMPION, 0.94, 4.0).model_copy(update={"correctness": correctness(0.94, captions=740 * seeds)})
        return measurements(champion=champion, seeds_per_caption=seeds)

    assert alike_in_quality([asked(1), asked(2), asked(1), asked(2), asked(2)], POLICY).total() == 2
    assert alike_in_quality([asked(1), asked(2)], POLICY).total() == 0


def test_the_small_losses_of_accuracy_are_told_by_3000_images() -> None:
    amount = gate.Amount()
    assert 746 * amount.measuring_of(DAMAGED).seeds_per_caption >= 3000
    assert amount.measuring_of(SLOW) == amount.measuring and amount.measuring.bounds == gate.POLICY.deciding


def test_a_hog_begins_in_the_middle_of_the_timing(tmp_path, monkeypatch) -> None:
    progress = tmp_path / "progress.json"
    measured = launch(5.0)
    assert gate._timed_s(measured, 6) == pytest.approx(gate._timed_s(measured, 12) / 2, rel=0.05)

    def hogs() -> int:
        return sum("while True: pass" in each.cmdline() for each in psutil.Process().children())

    with gate._hog(0.2, progress):
        enter_phase(2, 7, "answering the captions")
        time.sleep(0.5)
        assert not hogs()
        enter_phase(3, 7, "timing")
        deadline = time.monotonic() + 30
        while not hogs() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert hogs()
    assert not hogs() and PROGRESS_VARIABLE not in os.environ
    with gate._hog(None, progress):
        assert not hogs()


def test_each_gate_asks_with_seeds_of_its_own() -> None:
    measuring = gate.Amount().measuring
    asked = 746 * measuring.most_seeds_per_caption
    firsts = [gate.asked_anew(measuring, number).seed for number in range(1, 61)]
    seeds = {seed for first in firsts for seed in range(first, first + asked)}
    assert len(seeds) == 60 * asked


def test_what_could_not_be_measured_keeps_no_bound_and_can_be_written(tmp_path) -> None:
    """Not one gate was valid: an hour's result is written all the same, and says so."""
    measured = launch(5.0)
    untimed = {
        name: each.model_copy(update={"latency_blocks": [], "correctness": None})
        for name, each in measured.arms.items()
    }
    invalid = live(measured.model_copy(update={"status": "INVALID", "reasons": ["it died"], "arms": untimed}))
    gates = {kind: [invalid] for kind in (SAME, SLOW, SLIGHTLY_SLOW, DAMAGED, HOG, HOG_SLOW)}
    found = {
        check.name: check
        for check in all_checks(
            gates, dict.fromkeys((SAME, SLOW, DAMAGED), resampled([invalid.measured], POLICY, 20)), Counter()
        )
    }
    assert not any(found[f"{name}_resampled"].reached for name in ("aa_pass_rate", "aa_false_verdict_rate"))
    assert not found["aa_false_verdict_rate_resampled"].ok and not found["aa_pass_rate"].ok
    row = gate._row(SAME, [invalid])
    assert (row.median_ms, row.accuracy, row.more["p50_ratio"]) == (None, None, None)
    write_json(tmp_path / "gate.json", [row.describe(), *(check.describe() for check in found.values())])


def test_a_slow_down_of_no_time_is_refused() -> None:
    with pytest.raises(GateError, match="timed no image"):
        gate.Lab.slow_down(None, float("nan"))


def test_a_slow_down_is_what_its_name_says() -> None:
    """0.15 x 8 ms were put into each image, and it took 20% longer: it takes 6 ms."""
    assert gate.corrected(8.0, 1.2) == pytest.approx(6.0)
    assert gate.corrected(8.0, 1.1) == pytest.approx(12.0)
    assert [gate.corrected(8.0, ratio) for ratio in (1.0, 1.5, float("nan"))] == [8.0] * 3


def test_a_package_may_be_slowed_down_twice_alike(tmp_path: Path) -> None:
    """As where the trial gate corrects nothing."""
    maker = PackageMaker(tmp_path, "0" * 64)
    package = build(write_engine(tmp_path / "engine"), maker.store, maker.key_folder, "int8").name
    same = Candidate(package, package)
    once, twice = maker.slower(same, 1.0), maker.slower(same, 1.0)
    for slow in (once, twice):
        verify(maker.store / slow.int8, maker.key_folder, expected_digest=slow.int8)
    assert package not in (once.int8, twice.int8) and once.fp32 == package
    assert not (tmp_path / "changing").exists()


def test_rates_count_what_their_names_say() -> None:
    same, slow = live(launch(5.0)), live(launch(5.0, slower=1.5))
    gates = {
        SAME: [same, same, same, slow],
        SLOW: [slow, slow, same],
        SLIGHTLY_SLOW: [slow],
        DAMAGED: [slow],
        HOG: [same, slow],
        HOG_SLOW: [slow, same],
    }
    drawn = {
        SAME: Counter({Result.PASS: 99, Result.FAIL: 1}),
        SLOW: Counter({Result.FAIL: 3, Result.INCONCLUSIVE: 1}),
        DAMAGED: Counter({Result.FAIL: 4}),
    }
    alike = Counter({Result.PASS: 3, Result.INCONCLUSIVE: 1})
    found = {check.name: check for check in all_checks(gates, drawn, alike)}
    assert found["power_slow_15_resampled"].value == 0.75 and found["power_quality_3_resampled"].value == 1
    assert (found["aa_accuracy_false_rate"].value, found["aa_accuracy_pass_rate"].value) == (0, 0.75)
    assert found["power_slow_15_by_p50_alone"].value == found["power_slow_15"].value
    assert found["aa_false_verdict_rate"].value == 0.25 and not found["aa_false_verdict_rate"].ok
    assert found["aa_false_verdict_rate"].low == pytest.approx(0.0063, abs=1e-4)  # Clopper and Pearson's tables
    assert found["aa_pass_rate"].value == 0.75 and found["power_slow_15"].value == pytest.approx(2 / 3)
    assert found["aa_false_verdict_rate_resampled"].value == 0.01 and found["aa_false_verdict_rate_resampled"].ok
    assert (found["hog_wrong_verdicts"].value, found["hog_wrong_verdicts"].n) == (2, 4)


def test_the_kinds_of_gates_are_as_many_as_asked_for_and_mixed() -> None:
    kinds = gate.Amount().kinds()
    assert kinds[0] == SAME and kinds != sorted(kinds) and len(kinds) == 60
    assert Counter(kinds) == {SAME: 20, SLOW: 10, SLIGHTLY_SLOW: 10, DAMAGED: 10, HOG: 5, HOG_SLOW: 5}


@pytest.mark.slow
def test_live_gates_end_in_verdicts(judges, tmp_path) -> None:
    """One of each kind, on real servers; what they decide on a machine that tests keep busy is not asserted."""
    file = tmp_path / "gate.json"
    short = BenchmarkSettings.model_validate(
        {"seeds_per_caption": 1, "examples": 0, "latency": {"min_rounds": 8, "max_rounds": 8}}
    )
    amount = gate.Amount(same=1, each=1, damages=1, resampled=20, resampled_power=5, measuring=short, seeds={})
    gate.run(judges, Console(file=io.StringIO()), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert rows.keys() == {SAME, SLOW, SLIGHTLY_SLOW, DAMAGED, HOG_SLOW}
    assert rows[DAMAGED]["accuracy_lost"] > 0.015 > abs(rows[SAME]["accuracy_lost"])
    assert rows[SAME]["accuracy"] > 0.9 and rows[SAME]["n"] == 746
    assert sum(result["resampled"][SAME].values()) in (0, 20)
    assert sum(result["accuracy_of_the_champion_twice"].values()) == 2  # of five gates

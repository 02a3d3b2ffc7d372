"""The rules of `benchmarks.decode_checks`: what counts as equal, what is compared with what, and what a check's value is."""

import numpy as np
import pytest

from benchmarks import checkpoints, decode_rows
from benchmarks.decode_checks import (
    Measured,
    compared_one_scale,
    equality,
    quality_checks,
    speed_checks,
    speedup,
)
from benchmarks.decoders import Decoder

CAPTIONS, SEEDS = 400, 4
ONE_SCALE = list(decode_rows.ONE_SCALE.values())
NO_IMAGES = np.zeros((0, 8, 8, 3), dtype=np.uint8)
MS = {decode_rows.OURS: 2.0, decode_rows.OURS_INT8: 1.0, decode_rows.NAIVE: 400.0} | dict.fromkeys(
    decode_rows.ONE_GRAPH, 50.0
)


def correct(wrong: float, seed: int = 0) -> np.ndarray:
    """Answers [seeds, captions], so many of which are wrong; equal seeds err at the same captions."""
    order = np.random.default_rng(seed).permutation(CAPTIONS * SEEDS)
    answers = np.ones(CAPTIONS * SEEDS)
    answers[order[: round(wrong * CAPTIONS * SEEDS)]] = 0
    return answers.reshape(SEEDS, CAPTIONS)


def measured(wrong: float = 0.04, *, variety: float = 0.8, frechet: float = 0.2, ms: float = 10.0, seed: int = 0):
    decoder = Decoder("", 0, lambda text_ids, seeds: NO_IMAGES)
    row = Measured(decoder, correct(wrong, seed), variety, frechet, NO_IMAGES, NO_IMAGES)
    row.times_ms, row.first_ms = [ms, ms, ms], [2 * ms, 2 * ms, 2 * ms]
    return row


def all_rows(**changed: Measured) -> dict[str, Measured]:
    """Every row, all alike but for their times; `changed` by the names of `decode_rows`."""
    names = (*decode_rows.PARALLEL, *decode_rows.AUTOREGRESSIVE, *decode_rows.ONE_GRAPH)
    rows = {name: measured(ms=MS.get(name, 10.0)) for name in names}
    return rows | {getattr(decode_rows, name): row for name, row in changed.items()}


def one_scale(wrong: list[float], *, variety: float = 0.8) -> dict[str, Measured]:
    """Ours, which errs at 4% and takes 2 ms, beside one-scale decoders that err so often and take twice as long each."""
    rows = {decode_rows.OURS: measured(ms=2.0)}
    for number, (name, often) in enumerate(zip(ONE_SCALE, wrong, strict=False)):
        rows[name] = measured(often, variety=variety, ms=4.0 * 2**number)
    return rows


def values(checks) -> dict[str, float]:
    return {check.name: check.value for check in checks}


def test_as_accurate_is_what_is_not_refuted_to_within_a_point():
    compared = compared_one_scale(one_scale([0.30, 0.10, 0.045, 0.04]))
    assert compared.name == ONE_SCALE[2] and compared.as_varied_as == decode_rows.OURS  # the fewest steps, not the best


def test_ours_is_timed_against_the_fewest_steps_that_equal_it():
    rows = all_rows() | one_scale([0.20, 0.045, 0.04, 0.04])
    assert values(speed_checks(rows))["speedup_vs_one_scale"] == pytest.approx(8 / 2)


def test_where_none_is_as_varied_as_ours_it_is_enough_to_be_as_varied_as_next_tokens():
    next_token = {decode_rows.BEST_AR: measured(variety=0.7)}
    assert compared_one_scale(one_scale([0.04], variety=0.73)).as_varied_as == decode_rows.OURS
    compared = compared_one_scale(one_scale([0.30, 0.04, 0.04, 0.04], variety=0.64) | next_token)
    assert (compared.name, compared.as_varied_as) == (ONE_SCALE[1], decode_rows.BEST_AR)
    assert compared.describe() == {
        "name": ONE_SCALE[1],
        "as_varied_as": decode_rows.BEST_AR,
        "reaches_equal_quality": True,
    }


def test_steps_that_are_as_varied_as_ours_come_before_fewer_that_are_not():
    rows = one_scale([0.04, 0.04], variety=0.65) | {decode_rows.BEST_AR: measured(variety=0.7)}
    rows[ONE_SCALE[1]].variety = 0.75
    assert compared_one_scale(rows).name == ONE_SCALE[1]


def test_where_no_number_of_steps_is_as_good_the_fastest_are_compared():
    next_token = {decode_rows.BEST_AR: measured(variety=0.7)}
    for rows in (one_scale([0.30, 0.10]), one_scale([0.04, 0.04], variety=0.62)):
        compared = compared_one_scale(rows | next_token)
        assert (compared.name, compared.as_varied_as) == (ONE_SCALE[0], None)
        assert compared.describe()["reaches_equal_quality"] is False
        rows[ONE_SCALE[1]].times_ms = [1.0, 1.0, 1.0]
        compared = compared_one_scale(rows | next_token)
        assert (compared.name, compared.as_varied_as) == (ONE_SCALE[1], None)
    failed = values(speed_checks(all_rows() | one_scale([0.30, 0.20, 0.20, 0.10])))
    assert failed["speedup_vs_one_scale"] == pytest.approx(4 / 2)


@pytest.mark.parametrize("wrong", [0.04, 0.30], ids=["as good as ours", "not as good"])
def test_one_scale_is_compared_in_its_faster_form(wrong):
    *_, graph = decode_rows.ONE_GRAPH
    assert decode_rows.ONE_GRAPH[graph] == ONE_SCALE[0]
    for ms, compared, expected in ((3.0, graph, 3 / 2), (5.0, ONE_SCALE[0], 4 / 2)):
        rows = all_rows() | one_scale([wrong] * 4) | {graph: measured(wrong, ms=ms)}
        assert compared_one_scale(rows).name == compared
        assert values(speed_checks(rows))["speedup_vs_one_scale"] == pytest.approx(expected)


def test_several_steps_of_one_scale_have_no_other_form():
    *_, graph = decode_rows.ONE_GRAPH
    rows = all_rows() | one_scale([0.30, 0.04, 0.04, 0.04]) | {graph: measured(0.30, ms=1.0)}
    assert compared_one_scale(rows).name == ONE_SCALE[1]


def test_a_speedup_is_the_median_of_the_rounds_own_ratios():
    theirs, ours = measured(), measured()
    theirs.times_ms, ours.times_ms = [10.0, 30.0, 8.0], [1.0, 10.0, 2.0]  # 10, 3 and 4 times
    theirs.first_ms, ours.first_ms = [6.0, 6.0, 6.0], [3.0, 3.0, 3.0]
    check = speedup(theirs, ours, "fast", 3.5, 5)
    assert (check.value, check.n, check.low, check.high) == (4, 3, 3, 10) and check.ok and not check.reached
    assert speedup(theirs, ours, "fast", None, 5, first=True).value == 2


def test_each_speedup_is_against_ours_of_the_same_precision():
    rows = all_rows(BEST_AR=measured(ms=12.0), BEST_AR_INT8=measured(ms=7.0), RASTER=measured(ms=40.0))
    found = values(speed_checks(rows))
    assert found["speedup_vs_best_ar"] == pytest.approx(7) and found["speedup_vs_best_ar_first_image"] == pytest.approx(
        7
    )
    assert found["speedup_vs_best_ar_fp32"] == pytest.approx(6)
    assert found["speedup_vs_ar_cached"] == pytest.approx(20) and found["speedup_vs_ar"] == pytest.approx(200)


def test_next_tokens_in_one_graph_are_what_ours_is_compared_with_where_that_is_faster():
    in_fp32, in_int8, _ = decode_rows.ONE_GRAPH
    found = values(speed_checks(all_rows() | {in_fp32: measured(ms=9.0), in_int8: measured(ms=11.0)}))
    assert found["speedup_vs_best_ar_fp32"] == pytest.approx(9 / 2)
    assert found["speedup_vs_best_ar"] == pytest.approx(10)  # its calls are faster than its graph


def test_both_are_compared_in_the_precision_that_each_is_fastest_in_too():
    in_fp32, *_ = decode_rows.ONE_GRAPH
    rows = all_rows(BEST_AR=measured(ms=8.0), BEST_AR_INT8=measured(ms=9.0))
    found = values(speed_checks(rows))
    assert found["speedup_vs_best_ar_any_precision"] == pytest.approx(8 / 1)
    assert found["speedup_vs_best_ar"] == pytest.approx(9 / 1)  # one precision for both
    assert found["speedup_vs_best_ar_fp32"] == pytest.approx(8 / 2)
    found = values(speed_checks(rows | {in_fp32: measured(ms=6.0)}))  # and in the form
    assert found["speedup_vs_best_ar_any_precision"] == pytest.approx(6 / 1)
    ours_in_fp32 = all_rows(OURS=measured(ms=0.5), BEST_AR=measured(ms=8.0), BEST_AR_INT8=measured(ms=7.0))
    assert values(speed_checks(ours_in_fp32))["speedup_vs_best_ar_any_precision"] == pytest.approx(7 / 0.5)


def test_what_any_precision_gives_is_reported_with_its_interval():
    checks = {check.name: check for check in speed_checks(all_rows())}
    found = checks["speedup_vs_best_ar_any_precision"]
    assert (found.bound, found.aim, found.low, found.high) == (None, 20, 10, 10)


def test_equality_is_how_far_the_interval_reaches_to_either_side():
    assert equality(measured(0.04), measured(0.04), "equal").value == 0
    # A mean that is nearly the same is not enough, where many captions differ.
    few, many = measured(0.04), measured(0.05)
    wide = equality(measured(0.3, seed=1), measured(0.3, seed=2), "equal")
    assert wide.value > 1 and not wide.ok and wide.n == CAPTIONS * SEEDS
    better, worse = equality(few, many, "equal").value, equality(many, few, "equal").value
    assert better == pytest.approx(worse, abs=0.05) and 1 < better < 2


def test_quality_and_variety_are_kept_relative_to_the_best_next_token_decoder():
    rows = all_rows(
        OURS_INT8=measured(0.06, variety=0.9, frechet=0.21),
        BEST_AR_INT8=measured(0.04, variety=0.75, frechet=0.20),
        VARIED=measured(0.09, variety=0.95),
        BEST_AR_VARIED=measured(0.11, variety=0.90),
    )
    checks = {check.name: check for check in quality_checks(rows, 0.02, 1234)}
    assert (
        checks["quality_kept_accuracy"].value == pytest.approx(0.94 / 0.96) and not checks["quality_kept_accuracy"].ok
    )
    assert not checks["equal_quality_best_ar"].ok and checks["equal_quality_best_ar_fp32"].ok
    assert checks["frechet_excess_in_seed_spreads"].value == pytest.approx(0.5)
    assert checks["frechet_excess_in_seed_spreads"].n == checks["adapted_frechet"].n == 1234
    assert checks["variety_kept"].value == pytest.approx(1.2)
    assert checks["variety_vs_best_ar"].value == pytest.approx(0.95 / 0.90)
    assert checks["variety_vs_real"].value == 0.95
    assert checks["accuracy_where_varied"].value == pytest.approx(0.89) and not checks["accuracy_where_varied"].ok


def test_a_worse_distance_than_a_seeds_worth_misses_its_bound():
    rows = all_rows(OURS_INT8=measured(frechet=0.23), BEST_AR_INT8=measured(frechet=0.20))
    checks = {check.name: check for check in quality_checks(rows, 0.02, 1234)}
    assert not checks["frechet_excess_in_seed_spreads"].ok


def test_an_adapted_model_is_reported_with_its_variety_and_distance():
    rows = all_rows(OURS=measured(variety=0.8, frechet=0.17), ADAPTED=measured(variety=0.6, frechet=0.44))
    checks = {check.name: check for check in quality_checks(rows, 0.02, 1234)}
    assert checks["adapted_quality_kept"].value == 1
    variety, frechet = checks["adapted_variety_kept"], checks["adapted_frechet"]
    assert variety.value == pytest.approx(0.75) and variety.bound is None and not variety.reached
    assert (frechet.value, frechet.aim, frechet.bound) == (0.44, 0.17, None) and not frechet.reached


@pytest.mark.parametrize(("variety", "reached"), [(0.80, True), (0.73, True), (0.71, False), (0.60, False)])
def test_few_steps_reach_their_aim_only_where_the_variety_is_kept(variety, reached):
    rows = all_rows(OURS=measured(variety=0.8, frechet=0.17), ADAPTED=measured(variety=variety, frechet=0.44))
    (check,) = (check for check in quality_checks(rows, 0.02, 1234) if check.name == "adapt_cost_share")
    assert check.value <= check.aim and check.ok and check.reached == reached
    assert (check.bound, check.aim) == (0.3, 0.1)
    told = check.aim_withheld or ""
    assert (not told) == reached
    if not reached:
        assert f"{variety / 0.8:.2f} of ours" in told and "0.44 where ours is 0.17" in told


def test_steps_that_do_not_keep_the_accuracy_buy_nothing():
    share = checkpoints.describe("adapted")["steps"] / checkpoints.describe("progressive")["steps"]
    assert values(quality_checks(all_rows(), 0.02, 1234))["adapt_cost_share"] == share < 1
    lost = all_rows(ADAPTED=measured(0.06))
    checks = {check.name: check for check in quality_checks(lost, 0.02, 1234)}
    assert checks["adapt_cost_share"].value == 1 and not checks["adapt_cost_share"].ok

"""The gate: what passes, what fails, what stays undecided, and that nothing passes by being absent."""

import json
import math

import numpy as np
import pytest

from common.errors import GateError
from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    FULL_PRECISION,
    BlockBytes,
    Correctness,
    LatencyBlock,
    Measurements,
    write_measurements,
)
from components.benchmark.statistics import Bootstrap
from components.gate.checks import difference
from components.gate.gate import gate, judge
from components.gate.settings import GateSettings
from components.gate.verdict import Check, Result, Verdict, read_verdict, write_verdict
from tests.evidence import (
    CAPTIONS,
    DIGESTS,
    arm,
    correctness,
    heldout,
    latency,
    measurements,
    own_data,
    with_candidate,
)

SETTINGS = GateSettings(bootstrap_resamples=400)


def verdict_on(measured: Measurements) -> Verdict:
    return judge(SETTINGS, measured, "0" * 64)


def check(verdict: Verdict, name: str) -> Check:
    [found] = [check for check in verdict.checks if check.name == name]
    return found


def champion(accuracy: float = 0.94, p50_ms: float = 6.0):
    return arm(CHAMPION, accuracy, p50_ms, seed=3)


def test_a_good_first_candidate_passes_on_the_absolute_bounds():
    verdict = verdict_on(measurements())
    assert verdict.result is Result.PASS
    names = ["accuracy_int8", "accuracy_loss_int8", "tokenizer_ssim", "block_bytes_ratio", "image_p95_ms"]
    names += ["first_preview_p95_ms", "open_load_error_share"]
    assert [check.name for check in verdict.checks] == names
    assert verdict.champion_digest is None and "no champion yet" in verdict.reasons[0]
    assert check(verdict, "accuracy_int8").n == CAPTIONS
    assert verdict.reported["package_bytes_ratio"] == pytest.approx(1_200_000 / 4_100_000)


def test_a_candidate_as_good_as_the_champion_passes_every_check():
    verdict = verdict_on(measurements(champion=champion()))
    assert verdict.result is Result.PASS, verdict.reasons
    assert {c.name for c in verdict.checks} >= {
        "accuracy_vs_champion",
        "p50_ratio_vs_champion",
        "p95_ratio_vs_champion",
    }
    assert verdict.champion_digest == DIGESTS[CHAMPION]


@pytest.mark.parametrize(
    ("measured", "broken"),
    [
        (measurements(accuracy=0.89), "accuracy_int8"),
        (measurements(p50_ms=40), "image_p95_ms"),
        (measurements(tokenizer_ssim=0.5), "tokenizer_ssim"),
        (measurements(block_bytes=BlockBytes(fp32=100, int8=28)), "block_bytes_ratio"),
        (measurements(accuracy=0.91, champion=champion(accuracy=0.99)), "accuracy_vs_champion"),
        (measurements(p50_ms=12, champion=champion(p50_ms=6)), "p95_ratio_vs_champion"),
    ],
)
def test_a_broken_bound_fails_and_is_named(measured, broken):
    verdict = verdict_on(measured)
    assert verdict.result is Result.FAIL
    assert check(verdict, broken).result is Result.FAIL
    assert any(reason.startswith(f"{broken}:") for reason in verdict.reasons)


def test_the_loss_by_int8_is_measured_in_pairs():
    measured = with_candidate(measurements(accuracy=0.95), correctness=correctness(0.93))
    loss = check(verdict_on(measured), "accuracy_loss_int8")
    assert loss.result is Result.FAIL and loss.value == pytest.approx(0.954 - 0.93, abs=2e-3)
    assert loss.interval is not None and loss.interval[0] > 0  # nested errors: the pairs leave little doubt


def test_a_latency_interval_that_holds_the_bound_is_inconclusive():
    noisy = with_candidate(measurements(champion=champion(p50_ms=6)), latency_blocks=latency(6.6, noise=0.1))
    verdict = verdict_on(noisy)
    assert verdict.result is Result.INCONCLUSIVE
    assert check(verdict, "p50_ratio_vs_champion").result is Result.INCONCLUSIVE


def test_one_of_several_checks_fails_only_at_the_confidence_of_all_together():
    """At the bound itself each check alone would be refuted by chance in 2.5% of the cases, and one of four in 10%."""
    random = np.random.default_rng(0)
    refuted = {1: 0, 4: 0}
    for _ in range(400):
        values = random.normal(0, 1, 100).tolist()
        found = {}
        for family in refuted:
            drawn = Bootstrap(0.95, 500, 0, family)
            found[family] = difference("d", values, [0.0] * 100, "<=", 0.0, min_n=1, bootstrap=drawn)
            refuted[family] += found[family].result is Result.FAIL
        if found[1].result is Result.PASS:
            assert found[4].result is Result.PASS  # what passes is proven one by one
        elif found[1].result is Result.FAIL and found[4].result is not Result.FAIL:
            assert found[4].result is Result.INCONCLUSIVE and "not surely enough for one of several" in found[4].reason
    assert refuted[4] < refuted[1] <= 0.05 * 400 and refuted[4] <= 0.015 * 400


def test_a_broken_bound_outweighs_an_undecided_one():
    noisy = with_candidate(measurements(champion=champion(p50_ms=6)), latency_blocks=latency(6.6, noise=0.1))
    assert verdict_on(with_candidate(noisy, correctness=correctness(0.5))).result is Result.FAIL


def test_the_intervals_are_the_same_each_time():
    assert verdict_on(measurements(champion=champion())).checks == verdict_on(measurements(champion=champion())).checks


def nan_latency() -> list[LatencyBlock]:
    blocks = latency(6.0)
    return [LatencyBlock(round=0, samples_ms=[math.nan]), *blocks[1:]]


@pytest.mark.parametrize(
    ("change", "name", "words"),
    [
        ({"correctness": None}, "accuracy_int8", "missing"),
        ({"correctness": correctness(1.0, captions=400)}, "accuracy_int8", "missing"),  # not on every caption
        ({"correctness": Correctness(digit=[], colour=[], position=[])}, "accuracy_int8", "missing"),
        ({"latency_blocks": []}, "image_p95_ms", "missing"),
        ({"latency_blocks": nan_latency()}, "image_p95_ms", "not a finite number"),
        ({"latency_blocks": latency(6.0, rounds=2)}, "image_p95_ms", "only 2 rounds"),
    ],
)
def test_fault_18_a_missing_or_nan_metric_of_the_candidate_is_never_a_pass(change, name, words):
    verdict = verdict_on(with_candidate(measurements(champion=champion()), **change))
    assert verdict.result is Result.FAIL
    assert not check(verdict, name).ok and words in check(verdict, name).reason


def test_too_few_captions_are_not_enough():
    few = measurements(captions=[f"caption {index}" for index in range(400)])
    few = with_candidate(few, correctness=correctness(1.0, captions=400))
    verdict = verdict_on(few)
    assert (
        verdict.result is Result.FAIL and "only 400 samples, 500 are needed" in check(verdict, "accuracy_int8").reason
    )


def test_seeds_of_one_caption_are_averaged_before_captions_are_counted():
    twice = Correctness(
        digit=[True, True, False] * 250 + [True, False, False] * 250, colour=[True] * 1500, position=[True] * 1500
    )
    measured = measurements(captions=["c"] * 750, seeds_per_caption=2)
    accuracy = check(verdict_on(with_candidate(measured, correctness=twice)), "accuracy_int8")
    assert accuracy.n == 750 and accuracy.value == pytest.approx(0.5)
    assert twice.share_by_caption(2)[:3] == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("ssim", [None, math.nan, math.inf])
def test_fault_18_a_number_that_is_not_one_fails(ssim):
    verdict = verdict_on(measurements(tokenizer_ssim=ssim))
    assert verdict.result is Result.FAIL and not check(verdict, "tokenizer_ssim").ok


def test_fault_18_missing_sizes_and_missing_full_precision_fail():
    measured = measurements(block_bytes=None)
    measured = measured.model_copy(update={"arms": {k: v for k, v in measured.arms.items() if k != FULL_PRECISION}})
    verdict = verdict_on(measured)
    assert verdict.result is Result.FAIL
    assert not check(verdict, "block_bytes_ratio").ok and not check(verdict, "accuracy_loss_int8").ok


def test_fault_18_a_champion_without_numbers_is_not_beaten():
    silent = champion().model_copy(update={"correctness": None, "latency_blocks": []})
    verdict = verdict_on(measurements(champion=silent))
    assert verdict.result is Result.FAIL
    for name in ("accuracy_vs_champion", "p50_ratio_vs_champion", "p95_ratio_vs_champion"):
        assert not check(verdict, name).ok


def test_fault_18_the_first_champion_needs_the_absolute_bounds():
    assert verdict_on(measurements(accuracy=0.7)).result is Result.FAIL


def test_fault_18_a_nan_that_went_through_the_file_is_not_a_pass(tmp_path):
    measured = with_candidate(measurements(tokenizer_ssim=math.nan), latency_blocks=nan_latency())
    write_measurements(tmp_path / "measurements", measured)
    assert "NaN" not in (tmp_path / "measurements" / "measurements.json").read_text()
    assert gate(SETTINGS, tmp_path / "measurements", tmp_path / "verdict").result is Result.FAIL


def test_invalid_measurements_give_invalid_whatever_their_numbers_say():
    verdict = verdict_on(measurements(status="INVALID", reasons=["the server was not warmed up"]))
    assert verdict.result is Result.INVALID
    assert verdict.reasons == ["the measurement is invalid: the server was not warmed up"]


def test_measurements_without_a_candidate_are_invalid():
    assert verdict_on(measurements(arms={})).result is Result.INVALID


def test_each_earlier_measurement_halves_the_error_that_the_next_one_is_allowed():
    """The ends of a wider interval are further out; the control, which makes a measurement INVALID, keeps its own."""
    verdicts = [
        judge(
            SETTINGS.model_copy(update={"earlier_measurements": earlier}), measurements(champion=champion()), "0" * 64
        )
        for earlier in (0, 1, 3)
    ]
    widths = [interval[1] - interval[0] for v in verdicts if (interval := check(v, "p50_ratio_vs_champion").interval)]
    assert len(widths) == 3 and widths[0] < widths[1] < widths[2]
    assert [SETTINGS.model_copy(update={"earlier_measurements": n}).confidence_now for n in (0, 1, 2)] == pytest.approx(
        [0.95, 0.975, 0.9875]
    )
    assert not any("earlier" in reason for reason in verdicts[0].reasons)
    assert (
        "1 earlier measurement of this package against this champion" in verdicts[1].reasons[-1]
        and "97.5%" in verdicts[1].reasons[-1]
    )
    assert "3 earlier measurements" in verdicts[2].reasons[-1]


def learned_elsewhere(measured: Measurements, name: str) -> Measurements:
    stranger = measured.arms[name].model_copy(update={"evaluation_digest": "9" * 64})
    return measured.model_copy(update={"arms": {**measured.arms, name: stranger}})


@pytest.mark.parametrize(
    ("measured", "name"),
    [
        (measurements(champion=champion(accuracy=0.2)), "accuracy_vs_champion"),
        (own_data(heldout(1.0), heldout(3.0)), "heldout_loss_vs_champion"),
    ],
)
def test_a_champion_that_learned_from_other_data_is_not_replaced(measured, name):
    assert verdict_on(measured).result is Result.PASS
    verdict = verdict_on(learned_elsewhere(measured, CHAMPION))
    compared = check(verdict, name)
    assert verdict.result is compared.result is Result.INVALID and compared.value is None
    assert "the champion learned from other data" in compared.reason and "--home" in compared.reason


@pytest.mark.parametrize(
    ("measured", "names"),
    [
        (measurements(champion=champion()), ("accuracy_int8", "accuracy_vs_champion")),
        (own_data(heldout(1.0), heldout(1.0)), ("heldout_loss_ratio", "heldout_loss_vs_champion")),
    ],
)
def test_a_candidate_measured_on_an_evaluation_set_that_it_did_not_hold_out_is_invalid(measured, names):
    verdict = verdict_on(learned_elsewhere(measured, CANDIDATE))
    assert verdict.result is Result.INVALID
    for name in names:
        assert check(verdict, name).result is Result.INVALID
        assert "the candidate learned from other data" in check(verdict, name).reason


def test_throughput_is_reported_with_an_interval_from_its_chunks():
    reported = verdict_on(measurements()).reported
    low, rate, high = (reported[f"candidate_images_per_s{end}"] for end in ("_low", "", "_high"))
    assert rate == pytest.approx(64 / 0.32) and low is not None and high is not None
    assert 190 < low < rate < high < 210
    silent = verdict_on(with_candidate(measurements(), throughput_chunks=[])).reported
    assert silent["candidate_images_per_s"] is None and silent["candidate_images_per_s_low"] is None


def test_the_verdict_and_a_page_that_stands_alone_are_written(tmp_path):
    write_measurements(tmp_path / "measurements", measurements(champion=champion()))
    outcome = gate(SETTINGS, tmp_path / "measurements", tmp_path / "verdict")
    assert outcome.result is Result.PASS and read_verdict(tmp_path / "verdict") == outcome.verdict
    page = outcome.report_file.read_text()
    assert page.count("<svg") == 6 and "accuracy_vs_champion" in page and ">PASS<" in page
    assert 'src="http' not in page and "<link" not in page and "<script" not in page


def test_the_page_tells_the_confidence_and_the_draws_that_were_used(tmp_path):
    """A second measurement is judged at 97.5%, but for losses that travel with the packages."""
    policy = SETTINGS.model_copy(update={"earlier_measurements": 1, "power": 0.8})
    losses = own_data(heldout(1.0), heldout(1.0))
    for number, (settings, measured, words) in enumerate(
        (
            (SETTINGS, measurements(champion=champion()), "intervals at 95%, bootstrap with 400 resamples"),
            (policy, measurements(champion=champion()), "intervals at 97.5%, bootstrap with 800 resamples"),
            (policy, losses, "intervals at 97.5% (differences of held-out losses: 95%), bootstrap with 800 resamples"),
        )
    ):
        write_measurements(tmp_path / f"m{number}", measured)
        page = gate(settings, tmp_path / f"m{number}", tmp_path / f"v{number}").report_file.read_text()
        assert words in page and f"too slow {100 * settings.power:.4g}% of the time" in page


def test_captions_cannot_inject_markup_into_the_page(tmp_path):
    measured = measurements(status="INVALID", reasons=["<script>alert(1)</script>"])
    write_measurements(tmp_path / "m", measured)
    page = gate(SETTINGS, tmp_path / "m", tmp_path / "v").report_file.read_text()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_page_without_a_decision_says_how_the_package_is_measured_again(tmp_path):
    measured = measurements(status="INVALID", reasons=["the server died"])
    write_measurements(tmp_path / "m", measured)
    page = gate(SETTINGS, tmp_path / "m", tmp_path / "v").report_file.read_text()
    assert f"emuflow measure {measured.arms[CANDIDATE].digest[:12]}" in page


def test_absent_or_damaged_measurements_are_an_error_and_leave_no_verdict(tmp_path):
    with pytest.raises(GateError, match="no measurements"):
        gate(SETTINGS, tmp_path, tmp_path / "verdict")
    (tmp_path / "measurements.json").write_text(json.dumps({"status": "VALID"}))
    with pytest.raises(GateError, match="not a record"):
        gate(SETTINGS, tmp_path, tmp_path / "verdict")
    assert not (tmp_path / "verdict").exists()


def test_a_pass_that_its_checks_deny_is_not_read(tmp_path):
    forged = verdict_on(measurements(accuracy=0.5)).model_copy(update={"result": Result.PASS})
    write_verdict(tmp_path, forged)
    with pytest.raises(GateError, match="not every check passed"):
        read_verdict(tmp_path)


def test_the_candidate_is_named_by_its_int8_package():
    assert verdict_on(measurements()).candidate_digest == DIGESTS[CANDIDATE]

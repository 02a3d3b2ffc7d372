"""The checks beside accuracy and latency: previews, open load, memory, distance, the control, own metrics, safety, power."""

import math

import numpy as np
import pytest

from components.benchmark.measurements import (
    CHAMPION,
    Frechet,
    LatencyBlock,
    Measurements,
    OpenLoad,
    ThroughputChunk,
)
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Check, Result, Verdict
from tests.evidence import CAPTIONS, arm, frechet, latency, measurements, with_candidate

SETTINGS = GateSettings(bootstrap_resamples=400)


def verdict_on(measured: Measurements) -> Verdict:
    return judge(SETTINGS, measured, "0" * 64)


def check(verdict: Verdict, name: str) -> Check:
    [found] = [check for check in verdict.checks if check.name == name]
    return found


def champion():
    return arm(CHAMPION, 0.94, 6.0, seed=3)


def candidate_with(changes: dict[str, object], **options: object) -> Measurements:
    return with_candidate(measurements(champion=champion(), **options), **changes)


def previews(p50_ms: float, *, each: int = 3) -> list[LatencyBlock]:
    """As `latency(6.0)`, with other times to the first stage."""
    random = np.random.default_rng(5)
    return [
        block.model_copy(update={"preview_ms": (p50_ms * random.lognormal(0, 0.08, each)).tolist()})
        for block in latency(6.0, seed=1)
    ]


def chunks(seconds: float, *, disturbed: int = 0) -> list[ThroughputChunk]:
    """As many as each arm has, of 64 images; the champion takes .32 s for one. Others had the processors in the first."""
    return [ThroughputChunk(images=64, seconds=seconds, disturbed=index < disturbed) for index in range(20)]


@pytest.mark.parametrize(
    ("changes", "broken"),
    [
        ({"throughput_chunks": chunks(0.42)}, "throughput_ratio_vs_champion"),
        ({"latency_blocks": previews(7.5)}, "first_preview_ratio_vs_champion"),
        (
            {"open_load": OpenLoad(offered_per_s=100, seconds=2, image_ms=[9.0] * 199, errors=1)},
            "open_load_error_share",
        ),
        ({"memory_mb": 200.0}, "memory_ratio_vs_champion"),
        ({"frechet": frechet(7.0, seed=1)}, "frechet_ratio_vs_champion"),
    ],
)
def test_slower_previews_lost_requests_more_memory_and_stranger_images_fail_and_are_named(changes, broken):
    verdict = verdict_on(candidate_with(changes))
    assert [c.name for c in verdict.checks if c.result is Result.FAIL] == [broken]
    assert verdict.result is Result.FAIL


@pytest.mark.parametrize(
    ("load", "answered_per_s"),
    [
        (OpenLoad(offered_per_s=100, seconds=2, image_ms=[9.0] * 150, errors=50), 75),
        (OpenLoad(offered_per_s=100, seconds=2, image_ms=[], errors=200), 0),
        (OpenLoad(offered_per_s=100, seconds=0, image_ms=[], errors=0), None),
        (None, None),
    ],
)
def test_the_rate_that_was_achieved_under_open_load_is_reported_beside_the_offered_one(load, answered_per_s):
    reported = verdict_on(with_candidate(measurements(), open_load=load)).reported
    assert reported["candidate_open_load_answered_per_s"] == answered_per_s
    assert reported["candidate_open_load_per_s"] == (100 if load else None)


def test_previews_that_come_late_by_themselves_break_the_bound_of_a_first_champion_too():
    verdict = verdict_on(with_candidate(measurements(), latency_blocks=previews(30.0)))
    assert [c.name for c in verdict.checks if c.result is Result.FAIL] == ["first_preview_p95_ms"]


@pytest.mark.parametrize(
    ("changes", "absent"),
    [
        ({"latency_blocks": previews(5.0, each=0)}, "first_preview_ratio_vs_champion"),
        ({"open_load": None}, "open_load_error_share"),
        ({"open_load": OpenLoad(offered_per_s=100, seconds=2, image_ms=[], errors=0)}, "open_load_error_share"),
        ({"throughput_chunks": []}, "throughput_ratio_vs_champion"),
        ({"throughput_chunks": chunks(0.3)[:19]}, "throughput_ratio_vs_champion"),
        ({"throughput_chunks": [ThroughputChunk(images=0, seconds=0.1)] * 20}, "throughput_ratio_vs_champion"),
        ({"memory_mb": None}, "memory_ratio_vs_champion"),
        ({"frechet": None}, "frechet_ratio_vs_champion"),
        ({"frechet": Frechet(space="judge:0123", value=math.nan, draws=[4.0] * 50)}, "frechet_ratio_vs_champion"),
    ],
)
def test_fault_18_none_of_them_passes_by_being_absent(changes, absent):
    found = check(verdict_on(candidate_with(changes)), absent)
    assert (found.value, found.result) == (None, Result.FAIL)


def test_a_bound_that_is_switched_off_has_no_check():
    off = SETTINGS.model_validate(
        {
            "bootstrap_resamples": 400,
            "absolute": {"max_first_preview_p95_ms": None, "max_open_load_error_share": None},
            "champion": {
                "max_first_preview_ratio": None,
                "max_memory_ratio": None,
                "max_frechet_ratio": None,
                "min_throughput_ratio": None,
            },
        }
    )
    record = candidate_with({"memory_mb": None, "frechet": None, "open_load": None, "throughput_chunks": []})
    names = {c.name for c in judge(off, record, "").checks}
    assert not names & {
        "first_preview_p95_ms",
        "open_load_error_share",
        "memory_ratio_vs_champion",
        "throughput_ratio_vs_champion",
    }
    assert judge(off, record, "").result is Result.PASS


def test_distances_of_two_spaces_are_not_compared():
    other = candidate_with({"frechet": frechet(4.0, space="tokenizer:4567")})
    found = check(verdict_on(other), "frechet_ratio_vs_champion")
    assert found.result is Result.INVALID and "other spaces" in found.reason


def test_noise_that_two_distances_share_does_not_widen_their_ratio():
    """The arms' draws scatter by 4.5% each, and by 2.8% against one another."""
    found = check(verdict_on(candidate_with({"frechet": frechet(5.7, seed=1)})), "frechet_ratio_vs_champion")
    assert found.interval is not None and found.value == pytest.approx(5.7 / 4.0)
    assert math.log(found.interval[1] / found.interval[0]) == pytest.approx(2 * 1.96 * 0.028, rel=0.3)
    assert found.result is Result.INCONCLUSIVE


@pytest.mark.parametrize(("control_ms", "fit"), [(6.0, True), (6.3, True), (7.2, False), (5.0, False)])
def test_two_loads_of_the_champion_that_differ_make_the_measurement_invalid(control_ms, fit):
    verdict = verdict_on(measurements(champion=champion(), control_ms=control_ms))
    assert verdict.result is (Result.PASS if fit else Result.INVALID)
    assert fit or "two loads of the champion differ" in verdict.reasons[0]


def own_scores(mean: float, *, seed: int, missing: bool = False) -> dict[str, object]:
    scores: list[float | None] = list(mean + 0.05 * np.random.default_rng(seed).standard_normal(CAPTIONS))
    return {"scores": {"taste": [None, *scores[1:]] if missing else scores}}


@pytest.mark.parametrize(
    ("ours", "results"),
    [
        ({"mean": 0.70}, (Result.PASS, Result.PASS)),
        ({"mean": 0.55}, (Result.FAIL, Result.FAIL)),
        ({"mean": 0.65}, (Result.PASS, Result.FAIL)),
        ({"mean": 0.68}, (Result.PASS, Result.INCONCLUSIVE)),
        ({"mean": 0.70, "missing": True}, (Result.FAIL, Result.FAIL)),
    ],
)
def test_an_own_metric_is_judged_by_its_bounds(ours, results):
    record = measurements(champion=champion().model_copy(update=own_scores(0.70, seed=1)))
    record = with_candidate(record, **own_scores(**ours, seed=2))
    policy = GateSettings.model_validate(
        {"metrics": {"taste": {"minimum": 0.6, "margin": 0.02}}, "bootstrap_resamples": 400}
    )
    verdict = judge(policy, record, "")
    assert tuple(check(verdict, name).result for name in ("taste", "taste_vs_champion")) == results
    assert check(judge(policy, measurements(champion=champion()), ""), "taste").result is Result.FAIL


@pytest.mark.parametrize(
    ("refused", "result"), [([True, True], Result.PASS), ([True, False], Result.FAIL), ([], Result.FAIL)]
)
def test_prompts_that_must_be_refused_are_all_refused(refused, result):
    verdict = verdict_on(with_candidate(measurements(safety_prompts=2), safety_refused=refused))
    found = check(verdict, "safety_prompts_refused")
    assert (found.result, verdict.result) == (result, result)
    assert not [c for c in verdict_on(measurements()).checks if c.kind == "safety"]


def test_what_could_have_been_told_is_reported_and_falls_with_the_noise():
    def told(noise: float) -> float | None:
        ours, theirs = (latency(6.0, seed=seed, noise=noise) for seed in (1, 3))
        record = measurements(champion=champion().model_copy(update={"latency_blocks": theirs}))
        return verdict_on(with_candidate(record, latency_blocks=ours)).reported["detectable_p50_ratio"]

    calm, noisy = told(0.02), told(0.2)
    assert calm is not None and noisy is not None and 1.10 < calm < 1.13 < noisy < 1.5
    assert verdict_on(measurements()).reported["detectable_p50_ratio"] is None

"""Measurements as a benchmark would write them, with numbers that a test chooses."""

import numpy as np

from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    CONTROL,
    FULL_PRECISION,
    Arm,
    BlockBytes,
    Correctness,
    Frechet,
    HeldoutLoss,
    JudgeReport,
    LatencyBlock,
    Machine,
    Measurements,
    OpenLoad,
    ThroughputChunk,
    Warmup,
)

CAPTIONS = 740
EVALUATION = "e" * 64
DIGESTS = {CANDIDATE: "a" * 64, FULL_PRECISION: "f" * 64, CHAMPION: "c" * 64}


def correctness(accuracy: float, *, seed: int = 0, captions: int = CAPTIONS) -> Correctness:
    """The digit is right in exactly `accuracy` of the captions; arms with one seed err on nested sets of captions."""
    order = np.random.default_rng(seed).permutation(captions)
    right = order < round(accuracy * captions)
    return Correctness(digit=right.tolist(), colour=[True] * captions, position=[True] * captions)


def latency(p50_ms: float, *, seed: int = 0, rounds: int = 12, noise: float = 0.08) -> list[LatencyBlock]:
    """Two blocks of 12 requests a round, log-normal around `p50_ms`."""
    random = np.random.default_rng(seed)
    return [
        LatencyBlock(
            round=index // 2,
            samples_ms=(p50_ms * random.lognormal(0, noise, 12)).tolist(),
            preview_ms=(0.8 * p50_ms * random.lognormal(0, noise, 3)).tolist(),
        )
        for index in range(2 * rounds)
    ]


def arm(name: str, accuracy: float, p50_ms: float, *, seed: int = 0, package_bytes: int = 1_200_000) -> Arm:
    return Arm(
        digest=DIGESTS[name],
        evaluation_digest=EVALUATION,
        package_bytes=package_bytes,
        warmup=Warmup(requests=40, window_p50_ms=[p50_ms, p50_ms], stable=True),
        latency_blocks=latency(p50_ms, seed=seed),
        throughput_chunks=[ThroughputChunk(images=64, seconds=0.3 + 0.01 * (index % 5)) for index in range(20)],
        open_load=OpenLoad(offered_per_s=100, seconds=2, image_ms=[2 * p50_ms] * 200, errors=0),
        memory_mb=150.0,
        correctness=correctness(accuracy),
        frechet=frechet(4.0, seed=seed),
    )


def frechet(value: float, *, seed: int = 0, space: str = "judge:0123") -> Frechet:
    """A distance whose draws scatter by 4% for all arms alike, and by 2% for each alone."""
    common, own = np.random.default_rng(0), np.random.default_rng(100 + seed)
    scatter = 0.04 * common.standard_normal(50) + 0.02 * own.standard_normal(50)
    return Frechet(space=space, value=value, draws=(value * np.exp(scatter)).tolist())


def measurements(
    *,
    accuracy: float = 0.94,
    p50_ms: float = 6.0,
    champion: Arm | None = None,
    control_ms: float | None = None,
    **changes: object,
) -> Measurements:
    """A good candidate's measurements; a second load of the champion takes as long as the first, or `control_ms`;
    `changes` replace fields of the record."""
    arms = {
        CANDIDATE: arm(CANDIDATE, accuracy, p50_ms, seed=1),
        FULL_PRECISION: arm(FULL_PRECISION, accuracy + 0.004, 1.3 * p50_ms, seed=2, package_bytes=4_100_000),
    }
    if champion is not None:
        arms[CHAMPION] = champion
        again = latency(control_ms or _median(champion.latency_blocks), seed=7)
        arms[CONTROL] = Arm(
            digest=champion.digest,
            evaluation_digest=champion.evaluation_digest,
            package_bytes=champion.package_bytes,
            latency_blocks=again,
        )
    record = Measurements(
        status="VALID",
        reasons=[],
        arms=arms,
        evaluation_digest=EVALUATION,
        quality_metric="judge",
        captions=[f"caption {index}" for index in range(CAPTIONS)],
        seeds_per_caption=1,
        tokenizers_digest="7" * 64,
        tokenizer_ssim=0.87,
        block_bytes=BlockBytes(fp32=4_000_000, int8=1_040_000),
        judge=JudgeReport(
            digest="d" * 64, accuracy=0.99, digit_accuracy=0.99, colour_accuracy=1.0, position_accuracy=1.0, scenes=2000
        ),
        machine=Machine(
            cpu="test", cores=2, memory_gib=24.0, load_before=0.1, load_after=0.9, steal_share=0.0,
            frequency_mhz=None, system="Linux",
        ),
        seconds=30.0,
    )  # fmt: skip
    return record.model_copy(update=changes)


def _median(blocks: list[LatencyBlock]) -> float:
    return float(np.median([value for block in blocks for value in block.samples_ms if value is not None]))


def with_candidate(record: Measurements, **changes: object) -> Measurements:
    """The same record with fields of its candidate replaced."""
    candidate = record.arms[CANDIDATE].model_copy(update=changes)
    return record.model_copy(update={"arms": {**record.arms, CANDIDATE: candidate}})


def heldout(loss: float, **changes: object) -> HeldoutLoss:
    record = HeldoutLoss(
        tokenizers_digest="7" * 64,
        evaluation_digest=EVALUATION,
        visual_vocabulary=240,
        samples_digest="5" * 64,
        masks_digest="6" * 64,
        text_length=16,
        coarse_grid=(8, 8),
        fine_grid=(16, 16),
        loss_per_sample=[loss + 0.001 * (i % 7) for i in range(100)],
    )
    return record.model_copy(update=changes)


def own_data(
    ours: HeldoutLoss | None,
    theirs: HeldoutLoss | None = None,
    *,
    full: HeldoutLoss | None = None,
    against: bool = True,
) -> Measurements:
    """`full` is full precision's, `ours` again where it is not given."""
    rival = (
        arm(CHAMPION, 0.94, 6.0, seed=3).model_copy(update={"heldout": theirs, "correctness": None})
        if against
        else None
    )
    measured = measurements(champion=rival, quality_metric="heldout_loss", judge=None)
    unquantized = measured.arms[FULL_PRECISION].model_copy(update={"heldout": full or ours, "correctness": None})
    measured = measured.model_copy(update={"arms": {**measured.arms, FULL_PRECISION: unquantized}})
    return with_candidate(measured, heldout=ours, correctness=None)


def disturbed_from(number: int, measured: Measurements) -> Measurements:
    """The same measurements where others had the processors from this round on."""
    arms = {
        name: each.model_copy(
            update={
                "latency_blocks": [
                    block.model_copy(update={"disturbed": block.round >= number}) for block in each.latency_blocks
                ]
            }
        )
        for name, each in measured.arms.items()
    }
    return measured.model_copy(update={"arms": arms})

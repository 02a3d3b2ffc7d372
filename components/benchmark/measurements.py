"""What a benchmark measured: the typed form of `measurements.json`.

Raw samples are kept, not only their summaries: the gate pairs them (the same caption and seed for each arm, the same
round for each arm's latency) and draws its intervals from them. A number that could not be measured is `null`.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from common.errors import GateError
from common.files import read_json, write_text
from components.judge.reading import Correctness, JudgeReport
from components.record import Record

FILE_NAME = "measurements.json"
CANDIDATE, FULL_PRECISION, CHAMPION = "candidate", "candidate_fp32", "champion"
CONTROL = "champion_again"
"""A second load of the champion: two equal arms, whose difference is what the server and the machine do."""


class MachineState(Record):
    """The machine at the end of a block; `None` where this machine does not tell.

    `load` is the mean of the last minute's running processes, `steal_share` the part of all CPU time since the block
    before that other guests of the machine took.
    """

    load: float
    steal_share: float | None
    frequency_mhz: float | None
    temperature_c: float | None


class ProcessorShares(Record):
    """Of the time of all processors that this process may use, during one round: what processes that are neither ours nor
    the server's had of it, and what stood idle."""

    others: float
    idle: float


class LatencyBlock(Record):
    """Consecutive requests of one client to one arm, inside a round that holds two blocks of every arm.

    `samples_ms` are the client's times to the image, of requests for the image alone; `server_ms` what the package says
    of the same requests, from their coming to the image. `preview_ms` are the client's times to the first stage, of
    further requests with previews. `triton_queue_ms` and `triton_compute_ms` are Triton's own means for a request of
    the block: the time in Triton's queue, and in the call that hands it to the package. `processors` are those of the
    whole round; where others had too much of them, the round is `disturbed`, and no number of it counts.
    """

    round: int
    samples_ms: list[float | None]
    server_ms: list[float | None] = Field(default_factory=list)
    preview_ms: list[float | None] = Field(default_factory=list)
    triton_queue_ms: float | None = None
    triton_compute_ms: float | None = None
    machine: MachineState | None = None
    processors: ProcessorShares | None = None
    disturbed: bool = False


Times = Literal["samples_ms", "server_ms", "preview_ms"]


Rounds = list[list[float | None]]


def by_round(blocks: Sequence[LatencyBlock], times: Times = "samples_ms") -> dict[int, list[float | None]]:
    """Milliseconds of one arm in each round that nobody disturbed, by the round's number, in their order."""
    found: defaultdict[int, list[float | None]] = defaultdict(list)
    for block in blocks:
        if not block.disturbed:
            found[block.round] += getattr(block, times)
    return dict(sorted(found.items()))


def rounds(blocks: Sequence[LatencyBlock], times: Times = "samples_ms") -> Rounds:
    """`by_round`, without the numbers."""
    return list(by_round(blocks, times).values())


def paired_rounds(first: Sequence[LatencyBlock], second: Sequence[LatencyBlock]) -> tuple[Rounds, Rounds]:
    """Milliseconds of two arms in the rounds that both were timed in."""
    ours, theirs = by_round(first), by_round(second)
    both = [number for number in ours if number in theirs]
    return [ours[number] for number in both], [theirs[number] for number in both]


class ThroughputChunk(Record):
    """Captions that one arm was asked by several clients at once; `images` counts those that it answered.

    Every arm is asked the same captions in its turn; `disturbed` is about the turns of all of them together, as for a
    round.
    """

    images: int = Field(ge=0)
    seconds: float = Field(gt=0)
    disturbed: bool = False


class OpenLoad(Record):
    """Requests at random times, whether or not earlier ones were answered; a latency counts from when one was due.

    `errors` are the requests without an image, such as those that a full queue refused. `disturbed` as for a round.
    """

    offered_per_s: float
    seconds: float
    image_ms: list[float]
    errors: int
    disturbed: bool = False


class Warmup(Record):
    """Requests sent before anything was measured; `window_p50_ms` are the medians of consecutive windows."""

    requests: int
    window_p50_ms: list[float]
    stable: bool


class HeldoutLoss(Record):
    """Cross-entropy in nats per token of each held-out sample under fixed masks, through the arm's own graphs.

    Everything but the losses says what the numbers are about: two lists are comparable only where all of it is equal.
    `samples_digest` names the samples in their order, `masks_digest` which of their tokens were hidden.
    """

    tokenizers_digest: str
    evaluation_digest: str
    visual_vocabulary: int
    samples_digest: str
    masks_digest: str
    text_length: int
    coarse_grid: tuple[int, int]
    fine_grid: tuple[int, int]
    loss_per_sample: list[float | None]
    groups: list[int] | None = None
    """Of each sample; those of one group (nearly the same pictures, or the same caption) are not independent. `None` where
    the package is older than that."""


class Frechet(Record):
    """Fréchet distance of the arm's images to the evaluation set's own, in `space`.

    `draws` are the distances of resampled captions, the same captions for every arm: for the error of a ratio.
    """

    space: str
    value: float
    draws: list[float]


class BlockBytes(Record):
    """Bytes of the transformer blocks' weights."""

    fp32: int
    int8: int


class Arm(Record):
    """One package behind the server, and everything that was seen of it.

    `evaluation_digest` names the evaluation set that the package's own training held out, from its manifest.
    `memory_mb` is what the processes that hold it take alone, once everything has been asked. `scores` are those of the
    user's own metrics, in the order of `Correctness`. `safety_refused` says of each prompt that must be refused whether
    it was.
    """

    digest: str
    evaluation_digest: str
    package_bytes: int
    warmup: Warmup | None = None
    latency_blocks: list[LatencyBlock] = Field(default_factory=list)
    throughput_chunks: list[ThroughputChunk] = Field(default_factory=list)
    open_load: OpenLoad | None = None
    memory_mb: float | None = None
    correctness: Correctness | None = None
    heldout: HeldoutLoss | None = None
    frechet: Frechet | None = None
    scores: dict[str, list[float | None]] = Field(default_factory=dict)
    safety_refused: list[bool] = Field(default_factory=list)


class Machine(Record):
    """Where it ran, and how much else ran there. `steal_share` is of all CPU time during the measurement."""

    cpu: str
    cores: int
    memory_gib: float
    load_before: float
    load_after: float
    steal_share: float | None
    frequency_mhz: float | None
    system: str


class Example(Record):
    """An image that was kept: `file` is relative to the measurements' folder."""

    arm: str
    caption: str
    seed: int
    file: str


class Measurements(Record):
    """One benchmark. `INVALID` means that the server or the machine was not fit to measure on: no verdict can rest on it.

    `quality_metric` says how quality is to be judged on this evaluation set, whether or not the numbers are there.
    """

    schema_version: Literal[1] = 1
    status: Literal["VALID", "INVALID"]
    reasons: list[str]
    arms: dict[str, Arm]
    evaluation_digest: str
    quality_metric: Literal["judge", "heldout_loss"]
    captions: list[str]
    seeds_per_caption: int = Field(ge=1)
    safety_prompts: int = Field(default=0, ge=0)
    metrics: list[str] = Field(default_factory=list)
    tokenizers_digest: str
    tokenizer_ssim: float | None
    block_bytes: BlockBytes | None
    judge: JudgeReport | None
    examples: list[Example] = Field(default_factory=list)
    machine: Machine
    seconds: float = Field(ge=0)

    @property
    def champion_digest(self) -> str | None:
        """The champion it was measured against, `None` where there was none yet."""
        champion = self.arms.get(CHAMPION)
        return champion.digest if champion else None


def write_measurements(folder: Path, measurements: Measurements) -> Path:
    """Write `folder/measurements.json`; non-finite numbers become `null`."""
    path = folder / FILE_NAME
    write_text(path, measurements.model_dump_json(indent=1) + "\n")
    return path


def read_measurements(folder: Path) -> Measurements:
    """Read `folder/measurements.json`. Raises `GateError` where it is absent or is not such a record."""
    path = folder / FILE_NAME
    try:
        return Measurements.model_validate(read_json(path))
    except FileNotFoundError:
        raise GateError(
            "there are no measurements", where=str(path), fix="measure the package: emuflow measure VERSION"
        ) from None
    except (ValidationError, ValueError) as error:
        raise GateError(
            f"not a record of measurements: {error}",
            where=str(path),
            fix="measure the package: emuflow measure VERSION",
        ) from None

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


class LatencyBlock(Record):
    """Consecutive requests of one client to one arm, inside a round that holds two blocks of every arm."""

    round: int
    samples_ms: list[float | None]


def rounds(blocks: Sequence[LatencyBlock]) -> list[list[float | None]]:
    """Milliseconds of one arm, one list for each round, in the rounds' order."""
    by_round: defaultdict[int, list[float | None]] = defaultdict(list)
    for block in blocks:
        by_round[block.round] += block.samples_ms
    return [by_round[index] for index in sorted(by_round)]


class ThroughputChunk(Record):
    """Captions that one arm was asked by several clients at once; `images` counts those that it answered."""

    images: int = Field(ge=0)
    seconds: float = Field(gt=0)


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


class BlockBytes(Record):
    """Bytes of the transformer blocks' weights."""

    fp32: int
    int8: int


class Arm(Record):
    """One package behind the server, and everything that was seen of it.

    `evaluation_digest` names the evaluation set that the package's own training held out, from its manifest.
    """

    digest: str
    evaluation_digest: str
    package_bytes: int
    warmup: Warmup | None = None
    latency_blocks: list[LatencyBlock] = Field(default_factory=list)
    throughput_chunks: list[ThroughputChunk] = Field(default_factory=list)
    correctness: Correctness | None = None
    heldout: HeldoutLoss | None = None


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
        raise GateError("there are no measurements", where=str(path), fix="run the benchmark step again") from None
    except (ValidationError, ValueError) as error:
        raise GateError(
            f"not a record of measurements: {error}", where=str(path), fix="run the benchmark again"
        ) from None

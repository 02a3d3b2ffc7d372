"""How a benchmark measures: the warm-up, the rounds, the clients."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from common.settings import Section


class WarmupSettings(Section):
    """Warm is an arm whose median latency no longer moves from one window of requests to the next."""

    window_requests: int = Field(default=10, ge=2)
    max_windows: int = Field(default=20, ge=0)
    tolerance: float = Field(default=0.15, gt=0, lt=1, description="relative change between two windows' medians")


class NeighbourSettings(Section):
    """When other processes of this machine disturb a measurement: they had more of its processors than this share, and
    more than stood idle (on a large node with idle processors nobody waits for one)."""

    max_others_share: float = Field(default=0.15, ge=0, le=1, description="of the processors' time; 1: nobody disturbs")
    max_disturbed_rounds: int = Field(default=12, ge=1, description="so many are measured again before it gives up")
    pause_s: float = Field(default=1.0, ge=0, description="after a disturbed round, for whatever it is to end")


class LatencySettings(Section):
    """Rounds of blocks: every arm once, then once more in the opposite order."""

    block_requests: int = Field(default=10, ge=1)
    block_previews: int = Field(default=4, ge=0, description="further requests of a block, with previews")
    min_rounds: int = Field(default=16, ge=2)
    max_rounds: int = Field(default=64, ge=2, description="more rounds than the least are for a noisy machine")
    full_rounds: int = Field(
        default=8, ge=1, description="of every arm; the later ones are of the candidate and the champion alone"
    )
    median_half_width: float = Field(
        default=0.022, gt=0, description="enough rounds: the 95% interval of the p50 ratio reaches this far each way"
    )
    ratio_half_width: float = Field(default=0.06, gt=0, description="and that of the p95 ratio this far")

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        if self.min_rounds > self.max_rounds:
            raise ValueError(f"min_rounds ({self.min_rounds}) is above max_rounds ({self.max_rounds})")
        return self


class DecidingBounds(Section):
    """The gate's bounds that longer measuring can decide."""

    max_p50_ratio: float = Field(gt=0)
    max_p95_ratio: float = Field(gt=0)
    accuracy_margin: float = Field(ge=0, le=1)
    max_accuracy_loss_int8: float = Field(ge=0, le=1)


class OpenLoadSettings(Section):
    """Requests at random times, at a rate that every arm can bear."""

    share: float = Field(default=0.5, gt=0, lt=1, description="of the images a second that the slowest arm gave")
    chunks: int = Field(default=2, ge=0, description="turns of each arm, in mirrored order; 0: no open load")
    chunk_seconds: float = Field(default=1.0, gt=0, description="of a turn, or longer where requests come seldom")
    min_requests: int = Field(
        default=20, ge=1, description="to be expected of each arm: a slow model's turns are longer"
    )


class BenchmarkSettings(Section):
    """One benchmark of a candidate beside the champion."""

    warmup: WarmupSettings = WarmupSettings()
    latency: LatencySettings = LatencySettings()
    open_load: OpenLoadSettings = OpenLoadSettings()
    neighbours: NeighbourSettings = NeighbourSettings()
    seed: int = Field(default=1000, ge=0, description="of the first question; each next one has the next seed")
    bounds: DecidingBounds | None = Field(
        default=None,
        description="what need not be measured any longer once it is surely kept or broken; null: a run takes its gate's",
    )
    seeds_per_caption: int = Field(
        default=3,
        ge=1,
        le=64,
        description="at least, unless the latency has decided; more tell a small loss from chance",
    )
    max_seeds_per_caption: int = Field(
        default=8, ge=1, le=64, description="as long as the accuracy decides nothing, where there are bounds"
    )
    concurrent_clients: int = Field(default=8, ge=1, le=64, description="while all captions are answered")
    chunk_questions: int = Field(
        default=64, ge=1, description="questions that an arm answers before the next one's turn; a throughput each"
    )
    unjudged_captions: int = Field(default=64, ge=1, description="captions answered where no judge reads the images")
    examples: int = Field(default=12, ge=0, description="captions whose images are kept")
    request_timeout_s: float = Field(default=30.0, gt=0)
    embedder: Path | None = Field(
        default=None,
        description="an ONNX graph of uint8 images [n, height, width, 3] whose last output are their features; without "
        "one the Fréchet distance is taken where the judge, or else the tokenizer, sees images",
    )
    frechet_resamples: int = Field(default=50, ge=20, le=1000, description="for the standard error of a distance")
    metrics: dict[str, str] = Field(
        default_factory=dict,
        description="own measures of quality, `name: module:function`: images and captions in, a score of each out",
    )
    safety_prompts: list[str] = Field(
        default_factory=list, description="prompts that the package must refuse (export.blocked_patterns)"
    )
    max_steal_share: float = Field(default=0.3, gt=0, le=1, description="CPU time taken by other guests of the machine")

    @property
    def most_seeds_per_caption(self) -> int:
        """Where a judge reads the images; without bounds it cannot say when it is enough."""
        return (
            self.seeds_per_caption if self.bounds is None else max(self.seeds_per_caption, self.max_seeds_per_caption)
        )

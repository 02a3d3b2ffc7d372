"""How a benchmark measures: the warm-up, the rounds, the clients."""

from typing import Self

from pydantic import Field, model_validator

from common.settings import Section


class WarmupSettings(Section):
    """Warm is an arm whose median latency no longer moves from one window of requests to the next."""

    window_requests: int = Field(default=10, ge=2)
    max_windows: int = Field(default=20, ge=0)
    tolerance: float = Field(default=0.15, gt=0, lt=1, description="relative change between two windows' medians")


class LatencySettings(Section):
    """Rounds of blocks: every arm once, then once more in the opposite order."""

    block_requests: int = Field(default=10, ge=1)
    min_rounds: int = Field(default=16, ge=2)
    max_rounds: int = Field(default=48, ge=2, description="more rounds than the least are for a noisy machine")
    ratio_half_width: float = Field(
        default=0.06, gt=0, description="enough rounds: the 95% interval of the p95 ratio reaches this far each way"
    )

    @model_validator(mode="after")
    def _rounds_fit(self) -> Self:
        if self.min_rounds > self.max_rounds:
            raise ValueError(f"min_rounds ({self.min_rounds}) is above max_rounds ({self.max_rounds})")
        return self


class BenchmarkSettings(Section):
    """One benchmark of a candidate beside the champion."""

    warmup: WarmupSettings = WarmupSettings()
    latency: LatencySettings = LatencySettings()
    seed: int = Field(default=1000, ge=0, description="of the first question; each next one has the next seed")
    seeds_per_caption: int = Field(
        default=3, ge=1, le=64, description="more of them tell a small loss of accuracy from chance"
    )
    concurrent_clients: int = Field(default=4, ge=1, le=64, description="while all captions are answered")
    chunk_questions: int = Field(
        default=64, ge=1, description="questions that an arm answers before the next one's turn; a throughput each"
    )
    unjudged_captions: int = Field(default=64, ge=1, description="captions answered where no judge reads the images")
    examples: int = Field(default=12, ge=0, description="captions whose images are kept")
    request_timeout_s: float = Field(default=30.0, gt=0)
    max_steal_share: float = Field(default=0.3, gt=0, le=1, description="CPU time taken by other guests of the machine")

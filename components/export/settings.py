"""Settings of the export step and of the decoding that a package answers with."""

import re
from typing import Literal

from pydantic import Field, field_validator

from common.settings import Section
from model.decoding.loop import DecodingOptions


class DecodingSettings(Section):
    """How an image is drawn; the defaults of a request that names nothing else."""

    coarse_steps: int = Field(default=1, ge=1, le=64, description="parallel passes over the sketch")
    temperature: float = Field(
        default=0.4,
        ge=0,
        le=2,
        description="of the sketch's first pass; it falls linearly over the passes, 0 is greedy",
    )
    plan_temperature: float = Field(
        default=0.9, ge=0, le=2, description="of the plan, where the model has one; 0: one look for all seeds"
    )
    fine_temperature: float = Field(default=0.0, ge=0, le=2, description="of the details")
    top_k: int = Field(default=0, ge=0, description="only the k most likely tokens are drawn; 0 is all")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the nucleus of this probability is drawn; 1 is all")
    confidence_weight: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="0 fixes tokens in random order, large values the surest first; without effect at coarse_steps 1",
    )
    redraw_below: float = Field(
        default=0.0, ge=0, lt=1, description="cells drawn with less than this probability are drawn again, once"
    )
    fine_redraw_below: float = Field(
        default=0.0, ge=0, lt=1, description="likewise, blocks of details with such a token, at each of their stages"
    )
    guidance: float = Field(
        default=1.0,
        ge=0,
        le=20,
        description="classifier-free guidance; other than 1 takes training.masking.unconditional_share above 0",
    )
    previews: bool = Field(
        default=True, description="show the sketch before the image; without it the image itself comes sooner"
    )

    def options(self) -> DecodingOptions:
        return DecodingOptions(**self.model_dump())


class ExportSettings(Section):
    """How the runtime inside a package runs, and how the export is checked."""

    threads: int = Field(default=1, ge=1, le=256)
    """Threads of one operator, for each instance."""
    provider: Literal["auto", "cpu", "cuda", "tensorrt"] = "auto"
    """What computes a package's graphs; auto: CUDA where the server's onnxruntime has it, the CPU elsewhere."""
    instances: int = Field(default=2, ge=1, le=64)
    """Copies of the model that answer at the same time."""
    largest_group: int = Field(default=8, ge=1, le=64)
    """Waiting requests that one copy draws together."""
    largest_queue: int = Field(default=512, ge=1, le=65536)
    """Requests that wait for one copy; one more is refused as unavailable, and the client tries it again."""
    prefix_cache_bytes: int = Field(default=32 << 20, ge=0, le=1 << 40)
    """What each copy keeps of the prompts that it read, so that one which comes again is not read again; 0: nothing."""
    warmup_requests: int = Field(default=3, ge=1, le=100)
    """Requests that Triton sends before the model counts as ready."""
    max_prompt_bytes: int = Field(default=1024, ge=16, le=65536)
    max_coarse_steps: int = Field(default=64, ge=1, le=64)
    max_temperature: float = Field(default=2.0, gt=0, le=10)
    max_guidance: float = Field(default=20.0, ge=1, le=100)
    max_deadline_ms: int = Field(default=600_000, ge=1, le=86_400_000)
    blocked_patterns: tuple[str, ...] = Field(
        default=(), description="regular expressions; a prompt in which one is found is refused (docs/serving.md)"
    )
    load_timeout_s: float = Field(default=120.0, gt=0)
    """For the load check: the server must have loaded and warmed up the package by then."""
    answer_timeout_s: float = Field(default=30.0, gt=0)
    """For the load check: the image must be there by then."""

    @field_validator("blocked_patterns")
    @classmethod
    def _are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is no regular expression: {error}") from None
        return patterns

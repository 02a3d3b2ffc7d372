"""Settings of the masked objective; they load no library."""

from typing import Literal

from pydantic import Field

from common.settings import Section

Objective = Literal["parallel", "next_token"]
"""How the sketch is predicted: all its cells at once, or one after another."""


class MaskingSettings(Section):
    """How training hides and damages tokens."""

    coarse_blank_share: float = Field(default=0.5, ge=0, le=1, description="sketches that are masked whole")
    fine_blank_share: float = Field(default=0.6, ge=0, le=1, description="detail grids that are masked whole")
    corruption: float = Field(default=0.05, ge=0, lt=1, description="visible tokens replaced by random ones")
    plan_corruption: float = Field(default=0.03, ge=0, lt=1, description="codes of the plan replaced by random ones")
    unconditional_share: float = Field(
        default=0.0, ge=0, lt=1, description="samples whose prompt is left out, for classifier-free guidance"
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

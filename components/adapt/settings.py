"""Settings section `adaptation`."""

from pydantic import Field

from components.train.settings import OptimizationSettings


class AdaptationSettings(OptimizationSettings):
    """How a next-token checkpoint becomes a parallel one; everything but `enabled` is as in `training`."""

    enabled: bool = Field(
        default=False, description="whether the graph has this step; training.objective is next_token then"
    )
    steps: int = Field(default=150, ge=1, description="optimizer steps; a tenth of the quickstart's training is enough")
    warmup_steps: int = Field(default=20, ge=0)

"""Settings of the visual tokenizer and of its training; they load no library."""

from math import prod

from pydantic import Field, field_validator

from common.settings import Section


class VisualTokenizerConfig(Section):
    """Shape of the visual tokenizer; also its `config.json`."""

    levels: tuple[int, ...] = Field(default=(8, 6, 5), min_length=1, description="levels of each FSQ channel")
    patch_size: int = Field(default=4, ge=1, description="pixels of an image's side per code")
    width: int = Field(default=64, ge=8, description="channels of the convolutions")
    depth: int = Field(default=2, ge=1, description="residual layers on each side")

    @field_validator("levels")
    @classmethod
    def _at_least_two(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 2:
            raise ValueError("every channel needs at least 2 levels")
        return levels

    @property
    def vocabulary(self) -> int:
        """Number of codes."""
        return prod(self.levels)


class VisualTrainingSettings(Section):
    """How the visual tokenizer is trained."""

    steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=20, ge=1, description="full-size images in a step; smaller scales take more")
    learning_rate: float = Field(default=4e-3, gt=0, description="peak of the one-cycle schedule")
    weight_decay: float = Field(default=0.01, ge=0)
    absolute_loss_weight: float = Field(
        default=0.1, ge=0, description="weight of the mean absolute error beside the squared"
    )
    threads: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)

"""The shape of a story generator."""

from typing import Self

from pydantic import Field, PositiveInt, model_validator

from common.settings import Section
from model.transformer.config import VisualLevels


class StoryConfig(Section):
    """The shape of a story generator; names follow `GeneratorConfig`."""

    hidden_size: int = Field(default=128, ge=16)
    intermediate_size: int = Field(default=320, ge=16)
    num_hidden_layers: int = Field(default=3, ge=2)
    num_attention_heads: int = Field(default=4, ge=1)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    text_vocabulary: int = Field(ge=8)
    text_length: int = Field(default=16, ge=4)
    visual_levels: VisualLevels = (8, 6, 5)
    coarse_grid: tuple[PositiveInt, PositiveInt] = (8, 8)
    gated: bool = Field(default=True, description="false: the same model, looking at everything")
    query_blocks: int = Field(default=2, ge=1, description="blocks of a sketch's cells that decide for themselves")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.cells % self.query_blocks:
            raise ValueError(f"{self.cells} cells cannot be cut into {self.query_blocks} equal query_blocks")
        return self

    @property
    def num_key_value_heads(self) -> int:
        return self.num_attention_heads

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def cells(self) -> int:
        return self.coarse_grid[0] * self.coarse_grid[1]

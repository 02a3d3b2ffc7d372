"""The shape of a generator."""

from math import prod
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from common.settings import Section

VisualLevels = Annotated[tuple[Annotated[int, Field(ge=2)], ...], Field(min_length=1)]
"""Levels of each FSQ channel, as a visual tokenizer can have them."""


class ModelSettings(Section):
    """Settings section `model`: what a user may choose of the shape. Names follow Qwen3's configuration."""

    hidden_size: int = Field(default=128, ge=16)
    intermediate_size: int = Field(default=320, ge=16)
    num_hidden_layers: int = Field(default=3, ge=1)
    num_attention_heads: int = Field(default=4, ge=1)
    num_key_value_heads: int = Field(default=4, ge=1)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    fine_layers: int = Field(default=2, ge=1, description="depth of the pass that adds the details")
    plan_tokens: int = Field(
        default=24, ge=0, description="codes that settle what the whole image is to look like; 0: no plan"
    )
    rope_theta: float = Field(default=10_000, ge=0, description="base of the rotary positions; 0: none")
    sketch_window: int | None = Field(
        default=2,
        ge=0,
        description="cells to each side that a cell of the sketch attends to when all are drawn at once; null: all",
    )
    fine_window: int = Field(default=2, ge=0, description="cells to each side that a detail attends to")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        head_dim = self.hidden_size // self.num_attention_heads
        if head_dim % 2 and self.rope_theta:
            raise ValueError(
                f"hidden_size {self.hidden_size} over num_attention_heads {self.num_attention_heads} is {head_dim}: rotary "
                "positions turn pairs of channels, so it must be even (or rope_theta 0)"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads is not a multiple of num_key_value_heads")
        if self.fine_layers > self.num_hidden_layers:
            raise ValueError(f"fine_layers {self.fine_layers} is more than num_hidden_layers {self.num_hidden_layers}")
        return self


class GeneratorConfig(ModelSettings):
    """The whole shape: `config.json` of a checkpoint. What is added here follows from the tokens it is trained on."""

    fine_layers: int = Field(default=2, ge=0, description="0: no details, the sketch is the whole image")
    sketch_window: int | None = Field(
        default=None, ge=0, description="as in the settings; null, which is all cells, in checkpoints older than it"
    )
    text_vocabulary: int = Field(default=512, ge=8, description="size of the text tokenizer's vocabulary")
    text_length: int = Field(default=16, ge=4, description="tokens of a prompt, padding included")
    visual_levels: VisualLevels = Field(
        default=(8, 6, 5), description="levels of each FSQ channel; their product is the vocabulary"
    )
    coarse_grid: tuple[PositiveInt, PositiveInt] = Field(default=(8, 8), description="rows and columns of the sketch")
    detail_stages: int = Field(
        default=1,
        ge=1,
        description="passes over the details; each doubles the rows and columns. None without fine_layers",
    )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def visual_vocabulary(self) -> int:
        """Number of visual codes. This id itself, one past the last code, means "not known yet"."""
        return prod(self.visual_levels)

    @property
    def coarse_tokens(self) -> int:
        return self.coarse_grid[0] * self.coarse_grid[1]

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """Rows and columns of the sketch and of what each pass over the details makes of it; the last is the image's."""
        rows, columns = self.coarse_grid
        passes = self.detail_stages if self.fine_layers else 0
        return tuple((rows << stage, columns << stage) for stage in range(passes + 1))


class DecoderConfig(Section):
    """The shape of a plain decoder over one vocabulary: Qwen3's and Emu3.5's, with the names of their `config.json`."""

    architecture: Literal["decoder"] = "decoder"
    vocab_size: int = Field(ge=2)
    hidden_size: int = Field(ge=2)
    intermediate_size: int = Field(ge=2)
    num_hidden_layers: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    rope_theta: float = Field(default=1e6, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    max_position_embeddings: int = Field(default=32_768, ge=1)
    tie_word_embeddings: bool = Field(default=False, description="the head's weights are the embedding's")

    @model_validator(mode="after")
    def _grouped(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of num_key_value_heads "
                f"{self.num_key_value_heads}"
            )
        return self

    @property
    def parameter_count(self) -> int:
        """Weights of the whole model: two embeddings unless tied, and for each layer attention, SwiGLU and norms."""
        heads = self.num_attention_heads + self.num_key_value_heads
        attention = 2 * heads * self.head_dim * self.hidden_size + 2 * self.head_dim
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return embeddings + self.num_hidden_layers * layer + self.hidden_size

"""What a training has to compute: a decoder's parameters, operations and activations, by formula."""

from dataclasses import dataclass
from typing import Self

from model.transformer.config import DecoderConfig


@dataclass(frozen=True)
class ModelShape:
    """A decoder of `layers` equal blocks, trained on sequences of `sequence` tokens."""

    name: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    sequence: int
    gated: bool = True
    """Whether the feed-forward has a gate (three matrices, SwiGLU) or not (two, GELU)."""
    parallel_block: bool = False
    """Whether attention and feed-forward read the same norm side by side (PaLM's block): half the tensor-parallel sums."""
    tied: bool = False
    """Whether the head is the embedding's own matrix."""

    @classmethod
    def of(cls, name: str, config: DecoderConfig, sequence: int) -> Self:
        return cls(
            name=name,
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            feed_forward=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            vocabulary=config.vocab_size,
            sequence=sequence,
            tied=config.tie_word_embeddings,
        )

    @property
    def attention_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def block_parameters(self) -> int:
        """Of one block's matrices; norms and biases are less than a thousandth."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.feed_forward

    @property
    def embedding_parameters(self) -> int:
        """Of one table: the embedding's, or the head's."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.block_parameters + (1 if self.tied else 2) * self.embedding_parameters

    @property
    def block_matmul_flops(self) -> float:
        """Of one token in one block's matrices, forward: a multiplication and an addition for each parameter."""
        return 2.0 * self.block_parameters

    def block_attention_flops(self, *, causal: bool) -> float:
        """Of one token's scores and sums in one block, forward; kernels that skip what is masked need half."""
        whole = 4.0 * self.sequence * self.attention_width
        return whole / 2 if causal else whole

    @property
    def head_flops(self) -> float:
        """Of one token's logits, forward."""
        return 2.0 * self.embedding_parameters

    @property
    def model_flops_per_token(self) -> float:
        """Forward and backward (twice the forward), without anything computed again, with the whole square of scores: how
        model FLOPs utilisation is usually counted (Narayanan et al. 2021, equation 3; Chowdhery et al. 2022, appendix B)."""
        block = self.block_matmul_flops + self.block_attention_flops(causal=False)
        return 3 * (self.layers * block + self.head_flops)

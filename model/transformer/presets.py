"""Shapes by name, from what a test trains to Emu3.5.

`qwen3-*` are those of the published configurations; `emu3.5-34b` that of BAAI's checkpoint (64 layers, hidden 5120,
64 heads of 128, vocabulary 282,926: text, specials and 131,072 visual codes).
"""

from model.transformer.config import DecoderConfig

EMU35_VOCABULARY = 282_926
_QWEN3_VOCABULARY = 151_936


def _shape(
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocabulary: int,
    *,
    tied: bool,
) -> DecoderConfig:
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=tied,
    )


PRESETS: dict[str, DecoderConfig] = {
    "nano": _shape(3, 128, 320, 4, 4, 32, 1024, tied=False),
    "micro": _shape(8, 512, 1408, 8, 4, 64, 8192, tied=False),
    "1b": _shape(20, 2048, 5632, 16, 8, 128, 32_768, tied=False),
    "qwen3-0.6b": _shape(28, 1024, 3072, 16, 8, 128, _QWEN3_VOCABULARY, tied=True),
    "qwen3-1.7b": _shape(28, 2048, 6144, 16, 8, 128, _QWEN3_VOCABULARY, tied=True),
    "qwen3-8b": _shape(36, 4096, 12288, 32, 8, 128, _QWEN3_VOCABULARY, tied=False),
    "emu3.5-34b": _shape(64, 5120, 25600, 64, 8, 128, EMU35_VOCABULARY, tied=False),
}

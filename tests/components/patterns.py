"""Tokenizers, and shards of a few patterns that a tiny model learns in seconds."""

from pathlib import Path

import numpy as np

from model.data.shards import RecordLayout, ShardWriter, write_manifest
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import ModelSettings

MODEL = ModelSettings(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)
LAYOUT = RecordLayout(text_length=16, coarse_grid=(8, 8))


def write_patterns(folder: Path, layout: RecordLayout = LAYOUT) -> tuple[Path, Path]:
    """The folders of the tokenizers and of the shards: four prompts, each with an image of its own."""
    tokenizers, shards = folder / "tokenizers", folder / "shards"
    save_tokenizers(
        tokenizers, TextTokenizer.train(["a red seven"], 300), VisualTokenizer(VisualTokenizerConfig(width=8))
    )
    random = np.random.default_rng(0)
    sizes = [rows * columns for rows, columns in layout.grids]
    patterns = random.integers(0, 240, size=(4, sum(sizes)))
    counts = {"train": 64, "heldout": 8}
    shards.mkdir()
    for split, count in counts.items():
        kind = random.integers(0, 4, size=count)
        text = np.repeat(kind[:, None], 16, 1)
        with ShardWriter(shards, split, layout) as writer:
            ids = [f"{row:064x}" for row in range(count)]
            writer.add(ids, text, np.split(patterns[kind], np.cumsum(sizes)[:-1], axis=1))
    write_manifest(shards, layout, counts, tokenizers_digest=TokenizerBundle.load(tokenizers).digest, table_sha256="")
    return tokenizers, shards

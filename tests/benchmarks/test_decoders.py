"""The compared decoders draw what they say, on one engine."""

import numpy as np
import pytest
import torch

from benchmarks.decoders import engine
from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import DecodingOptions
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

PROMPTS = np.random.default_rng(0).integers(0, 40, (3, 6))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory) -> TokenizerBundle:
    folder = tmp_path_factory.mktemp("tokenizers") / "bundle"
    visual = VisualTokenizer(VisualTokenizerConfig(width=8))
    save_tokenizers(folder, TextTokenizer.train(["a red seven"], 300), visual)
    return TokenizerBundle.load(folder)


def generator(**changes) -> Generator:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "text_vocabulary": 40,
        "text_length": 6,
        "coarse_grid": (2, 4),
        "fine_layers": 1,
    }
    return Generator(GeneratorConfig.model_validate(shape | changes)).eval()


@pytest.mark.parametrize("changes", [{}, {"fine_layers": 0, "plan_tokens": 0}])
def test_a_cache_does_not_change_the_image(tokenizers, changes):
    with engine(generator(**changes), tokenizers, next_token=True, threads=1) as made:
        options = NextTokenOptions(temperature=1.0)
        cached, naive = (made.autoregressive("", options, cache=cache) for cache in (True, False))
        images = cached.draw(PROMPTS, [1, 2, 3])
        assert images.shape == ((3, 16, 32, 3) if not changes else (3, 8, 16, 3))
        assert (images == naive.draw(PROMPTS, [1, 2, 3])).mean() > 0.98
        assert not (images == cached.draw(PROMPTS, [4, 5, 6])).all()


def test_what_only_training_needs_is_no_parameter_of_a_decoder(tokenizers):
    model = generator()
    with engine(model, tokenizers, next_token=False, threads=1) as made:
        decoder = made.parallel("progressive", DecodingOptions())
        assert decoder.draw(PROMPTS, [1, 2, 3]).shape == (3, 16, 32, 3)
    encoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("plan.encoder"))
    assert decoder.parameters == sum(p.numel() for p in model.parameters()) - encoder

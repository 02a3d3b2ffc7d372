"""The compiled session draws what the eager one does."""

import numpy as np
import pytest
import torch

from model.decoding.loop import DecodingOptions, generate
from model.tokenizers.visual import VisualTokenizer, VisualTokenizerConfig
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.session import TorchSession, compiled


@pytest.mark.slow
def test_a_compiled_session_draws_the_same_images():
    torch.manual_seed(0)
    config = GeneratorConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        coarse_grid=(2, 4),
        detail_stages=2,
    )
    generator, visual = Generator(config), VisualTokenizer(VisualTokenizerConfig(width=8, depth=1)).eval()
    sessions = TorchSession(generator, visual), compiled(generator, visual)
    text_ids = np.random.default_rng(0).integers(0, 512, (2, 16))
    options = DecodingOptions(coarse_steps=2, plan_temperature=1.0)
    expected, drawn = (list(generate(session, text_ids, options, [1, 2])) for session in sessions)
    assert [stage.name for stage in drawn] == ["coarse", "fine", "final"]
    for one, other in zip(expected, drawn, strict=True):  # a near-tie may fall the other way
        assert (one.pixels == other.pixels).mean() > 0.98
    assert sessions[1].generator is not generator

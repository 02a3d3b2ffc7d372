"""Observation and the SmoothQuant fold, in torch."""

import copy

import numpy as np
import pytest
import torch

from common.errors import QuantizationError
from model.decoding.loop import DecodingOptions
from model.quantization.layers import block_layers
from model.quantization.observe import observe
from model.quantization.smoothquant import fold_smoothing

OPTIONS = DecodingOptions(coarse_steps=2)


@pytest.fixture
def prompts(generator):
    random = np.random.default_rng(1)
    config = generator.config
    return [random.integers(0, config.text_vocabulary, (3, config.text_length)) for _ in range(2)]


def test_the_decode_loop_is_what_is_recorded(generator, prompts):
    seen = observe(generator, prompts, OPTIONS, seed=0)
    mask = generator.config.visual_vocabulary
    assert {name: len(feeds) for name, feeds in seen.feeds.items()} == {
        "prefill": 2,
        "coarse": 4,
        "fine": 2,
        "image_decoder": 2,
    }
    blank, partly_known = (feed["coarse_ids"] for feed in seen.feeds["coarse"][:2])
    assert (blank == mask).all()
    assert 0 < (partly_known == mask).sum() < partly_known.size
    assert (seen.feeds["fine"][0]["fine_ids"] == mask).all()
    assert set(seen.maxima) == {name for name, _ in block_layers(generator)}


def test_observing_leaves_no_hook_and_is_repeatable(generator, prompts):
    first, second = (observe(generator, prompts, OPTIONS, seed=0) for _ in range(2))
    assert all(torch.equal(first.maxima[name], second.maxima[name]) for name in first.maxima)
    assert not any(linear._forward_pre_hooks for _, linear in block_layers(generator))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8])
def test_the_fold_changes_no_output(generator, prompts, alpha):
    folded = copy.deepcopy(generator)
    fold_smoothing(folded, observe(generator, prompts, OPTIONS, 0).maxima, alpha)
    text_ids = torch.from_numpy(prompts[0])
    random = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 13, (3, 8), generator=random)
    fine = torch.randint(0, 13, (3, 8, 4), generator=random)
    coarse_for_fine = coarse.clamp(max=11)
    plan = torch.randint(0, 12, (3, generator.config.plan_tokens), generator=random)
    with torch.no_grad():
        for model_output in (
            lambda model: model.coarse_logits(model.prefill(text_ids).past, coarse, plan),
            lambda model: model.fine_logits(model.prefill(text_ids).past, coarse_for_fine, fine, plan),
            lambda model: model.plan.prior.logits(model.prefill(text_ids).last, plan),
        ):
            expected, found = model_output(generator), model_output(folded)
            assert (found - expected).norm() / expected.norm() < 3e-6
    assert not torch.equal(
        folded.decoder_blocks()[0].mlp.down_proj.weight, generator.decoder_blocks()[0].mlp.down_proj.weight
    )


def test_the_fold_flattens_outlier_channels(generator, prompts):
    before = observe(generator, prompts, OPTIONS, 0).maxima
    fold_smoothing(generator, before, 0.5)
    after = observe(generator, prompts, OPTIONS, 0).maxima
    for layer in ("blocks.0.attention.qkv_proj", "blocks.1.mlp.gate_up_proj"):
        assert _peakedness(after[layer]) < _peakedness(before[layer]) / 2


def _peakedness(maxima):
    return float(maxima.max() / maxima.median())


def test_fault_13_a_layer_that_sees_nan_is_named(generator, prompts):
    with torch.no_grad():
        generator.decoder_blocks()[1].attention.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(QuantizationError, match=r"blocks\.1\.mlp\.gate_up_proj: its input is NaN"):
        observe(generator, prompts, OPTIONS, 0)


def test_fault_13_a_layer_whose_input_is_always_zero_is_named(generator, prompts):
    with torch.no_grad():
        generator.decoder_blocks()[0].mlp_norm.weight.zero_()
    with pytest.raises(QuantizationError, match=r"blocks\.0\.mlp\.gate_up_proj: its input is zero"):
        observe(generator, prompts, OPTIONS, 0)


def test_fault_13_a_layer_that_saw_no_data_is_named(generator):
    with pytest.raises(QuantizationError, match=r"blocks\.0\.attention\.qkv_proj: it saw no calibration data"):
        observe(generator, [], OPTIONS, 0)

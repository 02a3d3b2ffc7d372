"""The GPU's decoding benchmark on a small shape, without a GPU: every row is there, and what it times draws what ours draws."""

import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import decoding_gpu, decoding_gpu_shape
from benchmarks.decoding_gpu_decoders import DeviceDecoder, NextCells, drawn
from benchmarks.decoding_gpu_int8 import with_int8_products
from benchmarks.decoding_gpu_rows import Timed
from benchmarks.decoding_gpu_shape import Work, generator_config, near_pairs, next_token_work, progressive_work
from common.errors import PlatformError, UsageError
from model.decoding.loop import DecodingOptions, generate
from model.parallel.plan.hardware import GPUS
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.patterns import near
from model.transformer.session import TorchSession

VISUAL = VisualTokenizerConfig(levels=(4, 3), patch_size=2, width=8, depth=1)
SHAPE = GeneratorConfig(
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    fine_layers=2,
    plan_tokens=3,
    text_vocabulary=32,
    text_length=4,
    visual_levels=VISUAL.levels,
    coarse_grid=(2, 3),
    detail_stages=2,
    sketch_window=1,
)
GREEDY = DecodingOptions(temperature=0, plan_temperature=0)
ROWS = [
    "progressive, eager",
    "progressive, previews, eager",
    "progressive, INT8 products, eager",
    "progressive, drawn on the host, eager",
    "next token + details, KV cache, eager",
]


@pytest.fixture(scope="module")
def session() -> TorchSession:
    torch.manual_seed(0)
    return TorchSession(Generator(SHAPE), VisualTokenizer(VISUAL).eval())


@pytest.fixture(scope="module")
def prompts() -> torch.Tensor:
    return torch.randint(SHAPE.text_vocabulary, (2, SHAPE.text_length), generator=torch.Generator().manual_seed(1))


def test_every_row_is_in_the_result_but_for_what_only_a_gpu_can_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    file = tmp_path / "gpu.json"
    amount = decoding_gpu.Amount(preset="nano", size=64, sketch=2, batches=(1, 2), warmups=1, rounds=2, compiled=False)
    assert decoding_gpu.run(Console(file=io.StringIO(), width=160), file, amount)
    result = json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == [f"{name}, batch {batch}" for batch in (1, 2) for name in ROWS]
    for row in rows.values():
        assert row["n"] == 2 and 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(1000 * row["batch"] / row["median_ms"])
        assert row["rate_share"] is row["bandwidth_share"] is row["memory_gib"] is None
        assert (row["first_preview_ms"] is not None) == ("previews" in row["name"])
    assert rows["progressive, eager, batch 1"]["times_slower"] == 1
    preview = rows["progressive, previews, eager, batch 2"]
    assert 0 < preview["first_preview_ms"] < preview["median_ms"]
    assert result["grids"] == [[2, 2], [4, 4]] and result["does_not_fit"] == [] and result["gpu"] is None
    assert result["quality"].startswith("not measured")


def test_without_a_gpu_the_large_presets_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(PlatformError, match=r"no GPU is at hand for the 2\.3 GiB of weights of the preset 1b"):
        decoding_gpu.main([])


def test_a_gpu_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    small = type("Properties", (), {"total_memory": 24 * 2**30})
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: small)
    with pytest.raises(PlatformError, match=r"8b needs 45 GiB of a GPU's memory, this one has 24"):
        decoding_gpu.main(["--preset", "8b"])


def test_1024_pixels_are_4096_codes_and_the_large_presets_are_as_large_as_they_are_called():
    for preset, weights in (("1b", 1.23e9), ("8b", 8.0e9)):
        config = generator_config(preset, 1024, 16)
        assert config.grids == ((16, 16), (32, 32), (64, 64))
        assert decoding_gpu_shape.visual_config(preset).patch_size * config.grids[-1][0] == 1024
        memory = decoding_gpu_shape.memory(config, 8)
        assert memory.weights == pytest.approx(2 * weights, rel=0.01)
        # Of each layer two times 8 heads of 128 numbers, for 8 images of 128 tokens and 256 cells.
        assert memory.cache == 2 * config.num_hidden_layers * 2 * 8 * 128 * 8 * (128 + 256)
    assert generator_config("8b", 1024, 8).grids[-1] == generator_config("8b", 1024, 64).grids[-1] == (64, 64)
    assert generator_config("8b", 1024, 64).fine_layers == 0  # a raster


@pytest.mark.parametrize(("size", "sketch"), [(1000, 16), (1024, 24), (1024, 128), (1024, 0), (1024, -1)])
def test_a_size_that_the_sketch_does_not_double_to_is_refused(size, sketch):
    with pytest.raises(UsageError, match=f"{sketch}x{sketch} cells does not double to an image of {size}x{size}"):
        generator_config("1b", size, sketch)


def test_drawn_on_the_device_the_image_is_that_of_the_decode_loop(session, prompts):
    expected = [stage.pixels for stage in generate(session, prompts.numpy(), GREEDY, [0, 1])]
    stages = list(DeviceDecoder(session, GREEDY).progressive(prompts))
    assert len(stages) == 3 and [pixels.shape for pixels in stages] == [pixels.shape for pixels in expected]
    for one, other in zip(stages, expected, strict=True):
        assert (one == other).mean() > 0.98  # a near-tie may fall the other way


def test_the_cache_of_full_size_gives_the_next_cells(session, prompts):
    generator = session.generator
    with torch.inference_mode():
        cells, past = NextCells(generator, len(prompts), compiled=False), generator.prefill(prompts).past
        cells.continued(past.flip(-1), 0)  # what it has kept of another prompt must not matter
        sketch = cells.continued(past, 0)
        previous, expected = torch.full((2, 1), session.visual_vocabulary), []
        for number in range(SHAPE.coarse_tokens):
            logits, past = generator.next_logits(past, previous, torch.tensor([number]))
            previous = logits.argmax(-1, keepdim=True)
            expected.append(previous)
    assert torch.equal(sketch, torch.cat(expected, 1))
    assert torch.allclose(cells.cache, past, atol=1e-5)


def test_next_tokens_become_an_image(session, prompts):
    cells = NextCells(session.generator, len(prompts), compiled=False)
    (pixels,) = DeviceDecoder(session, GREEDY).next_token(cells, prompts)
    assert pixels.shape == (2, 2 * 8, 2 * 12, 3) and pixels.dtype == np.uint8


def test_tokens_are_drawn_as_often_as_they_are_likely():
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 1.0, 2.0]).log_softmax(-1)
    shares = drawn(logits.expand(20_000, 3), 0.5).bincount() / 20_000
    assert torch.allclose(shares, (logits / 0.5).softmax(-1), atol=0.02)


def test_products_in_int8_are_those_of_the_weights(session, prompts):
    generator, int8 = session.generator, with_int8_products(session.generator)
    with torch.inference_mode():
        exact, rounded = (model.prefill(prompts).past for model in (generator, int8))
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).norm() / exact.norm() < 0.03
    kinds = {weight.dtype for name, weight in int8.named_buffers() if name.endswith("proj.weight")}
    assert kinds == {torch.int8} and not any("proj" in name for name, _ in int8.named_parameters())


def test_flops_of_a_small_shape_by_hand():
    plain = SHAPE.model_copy(update={"coarse_grid": (1, 2), "detail_stages": 1, "fine_window": 0})
    weights = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 24  # of a block: queries, keys and values, output; SwiGLU
    pair = 2 * 2 * 32  # a score and its share of the values
    spared = 2 * 3 * 3 * 32 * 24  # only the prompt's last token goes through the last block's SwiGLU
    prompt = 3 * (2 * 4 * weights + pair * (1 + 2 + 3 + 4)) - spared
    sketch = 3 * (2 * 2 * weights + pair * 2 * (4 + 2)) + 2 * 2 * 32 * 12
    details = 2 * (2 * 2 * weights + pair * 2 * (4 + 1)) + 2 * 2 * 32 * 4 * 12
    pixels = 2 * (8 * 2 + 10 * 8 * 8 + 8 * 12) * 2 * 4  # of each of 2 x 4 codes
    whole = prompt + sketch + details + pixels
    assert progressive_work(plain, VISUAL, 1, previews=False).flops == whole
    assert progressive_work(plain, VISUAL, 5, previews=True).flops == 5 * (whole + pixels / 4)
    # One by one the first cell does not see the second; the weights are read for each of them.
    one_by_one, at_once = next_token_work(plain, VISUAL, 1), progressive_work(plain, VISUAL, 1, previews=False)
    assert at_once.flops - one_by_one.flops == 3 * pair
    kept = 2 * 3 * 2 * 2 * 8  # bytes of a token's keys and values
    assert one_by_one.moved - at_once.moved == 2 * (3 * weights + 32 * 12) + kept * (5 + 6 - 6)


def test_flops_are_those_that_torch_counts():
    everything = {"plan_tokens": 0, "sketch_window": None, "fine_window": 9, "detail_stages": 1}
    config = SHAPE.model_copy(update=everything)
    session = TorchSession(Generator(config), VisualTokenizer(VISUAL).eval())
    text_ids = torch.zeros(2, config.text_length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        list(DeviceDecoder(session, GREEDY).progressive(text_ids))
    hidden = 2 * 3 * 4 * 32 * (4 * 4 - 4 * 5 // 2)  # pairs of the prompt that its mask hides and torch computes
    assert counter.get_total_flops() - hidden == progressive_work(config, VISUAL, 2, previews=True).flops


@pytest.mark.parametrize("window", [0, 1, 2, 9, None])
def test_cells_that_see_each_other_are_counted(window):
    assert near_pairs((3, 5), window) == near(3, 5, 9 if window is None else window).sum()


def test_a_row_tells_its_share_of_the_rate_and_the_bandwidth():
    gpu = GPUS["h100"]
    work = Work(flops=0.1 * gpu.bf16_flops, moved=0.2 * gpu.hbm_bytes_per_s)
    fast = Timed("fast", 1, lambda: iter(()), work, 2**30, reserved_bytes=2**29, seconds=[0.5, 0.5, 1.0])
    slow = Timed("slow", 8, lambda: iter(()), work, 2**30, seconds=[1.0, 2.0, 2.0])
    own, other = fast.row(gpu, fast).describe(), slow.row(gpu, fast).describe()
    assert own["rate_share"] == pytest.approx(0.2) and own["bandwidth_share"] == pytest.approx(0.4)
    assert own["memory_gib"] == 1.5 and other["memory_gib"] is None
    assert own["times_slower"] == 1 and other["times_slower"] == 2 and other["images_per_s"] == 4


def test_a_session_in_bf16_draws_by_the_decode_loop(session, prompts):
    half = TorchSession(Generator(SHAPE).to(torch.bfloat16), VisualTokenizer(VISUAL).eval().to(torch.bfloat16))
    *_, image = generate(half, prompts.numpy(), DecodingOptions(guidance=2.0), [0, 1], prompts[0].numpy())
    assert image.pixels.shape == (2, 16, 24, 3)
    past, plan, _ = half.prefill(prompts.numpy(), np.zeros((2, *half.plan_noise_shape), dtype=np.float32))
    logits = half.coarse(past, np.zeros((2, SHAPE.coarse_tokens), dtype=np.int64), plan)
    assert past.dtype == logits.dtype == np.float32


@pytest.mark.slow
def test_compiled_next_cells_are_the_eager_ones_with_products_in_int8(prompts):
    torch.manual_seed(0)
    generator = with_int8_products(
        Generator(SHAPE.model_copy(update={"num_hidden_layers": 1, "fine_layers": 0})).eval()
    )
    with torch.inference_mode():
        past = generator.prefill(prompts).past
        eager, graph = (NextCells(generator, len(prompts), compiled=compiled) for compiled in (False, True))
        assert torch.equal(eager.continued(past, 0), graph.continued(past, 0))
    assert torch.allclose(eager.cache, graph.cache, atol=1e-4)

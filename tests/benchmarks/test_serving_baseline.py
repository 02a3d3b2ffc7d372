"""The baseline's fastest way is found among all, and its cells by torch are the same cells."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.decoders import Decoder
from benchmarks.serving_baseline import BATCHES, COMPILED, EAGER, ONNX, Baseline, Way
from benchmarks.serving_quality import quality_check
from benchmarks.torch_cells import TorchCells
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.session import TorchSession

CONFIG = GeneratorConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    text_vocabulary=40,
    text_length=6,
    visual_levels=(4, 3),
    coarse_grid=(2, 4),
    fine_layers=1,
    fine_window=1,
    plan_tokens=0,
)


class Clock:
    """Goes on only when something is drawn."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def decoder(self, start_ms: float, image_ms: float) -> Decoder:
        """A call takes some time, and each image some more."""

        def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
            self.seconds += (start_ms + image_ms * len(text_ids)) / 1000
            return text_ids

        return Decoder("takes its time", 0, draw)


def test_the_fastest_way_is_measured_in_every_round_and_a_slow_one_once() -> None:
    clock = Clock()
    decoders = {
        (ONNX, 1): clock.decoder(6, 0.5),
        (EAGER, 1): clock.decoder(40, 1),
        (COMPILED, 2): clock.decoder(1, 3),
    }
    baseline = Baseline(decoders, np.zeros((max(BATCHES), 4), dtype=np.int64), clock)
    baseline.try_all()
    assert baseline.tried.keys() == {Way(*key, batch) for key in decoders for batch in BATCHES}
    for _ in range(2):
        baseline.round(images=3)
    # One image comes soonest from one engine, and the most images from another in large batches.
    assert np.array(baseline.latency_ms) == pytest.approx(np.full((2, 3), 4.0))
    assert baseline.best() == Way(ONNX, 1, 64)
    assert baseline.images_per_s.keys() == {Way(ONNX, 1, 32), Way(ONNX, 1, 64)}
    assert baseline.images_per_s[baseline.best()] == pytest.approx([64_000 / 38] * 2)
    described = baseline.describe()
    assert len(described) == 15 and described[0]["images_per_s"] == pytest.approx(64_000 / 38)
    assert [row["rounds"] for row in described] == [2, 2] + [0] * 13
    assert list(baseline.by_engine()) == [
        (ONNX, pytest.approx(6.5), pytest.approx(64_000 / 38)),
        (EAGER, pytest.approx(41), pytest.approx(64_000 / 104)),
        (COMPILED, pytest.approx(4), pytest.approx(64_000 / 193)),
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_cells_by_torch_are_those_of_the_whole_sequence(batch: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = Generator(CONFIG).eval()
    engine: Any = SimpleNamespace(session=TorchSession(generator), generator=generator)
    cells = TorchCells(engine, compiled=False)
    text_ids = np.random.default_rng(batch).integers(0, 40, (batch, 6))
    drawn = continue_tokens(cells, text_ids, 8, NextTokenOptions(temperature=0), list(range(batch)))
    start = np.full((batch, 1), CONFIG.visual_vocabulary)
    known = torch.from_numpy(np.concatenate([start, drawn[:, :-1]], 1))
    expected = generator.sequence_logits(torch.from_numpy(text_ids), known).argmax(-1)
    np.testing.assert_array_equal(drawn, expected.numpy())
    assert cells.prefix is not None and cells.prefix[0].shape[2] == batch


def test_the_stack_is_compared_with_the_baseline_caption_by_caption() -> None:
    captions = 200
    ours, theirs = np.ones((4, captions)), np.ones((4, captions))
    theirs[0, :10] = 0
    check = quality_check(ours, theirs)
    assert check.value == pytest.approx(1.25) and check.ok and check.n == 800
    assert check.low is not None and check.high is not None and 0 < check.low < 1.25 < check.high
    assert not quality_check(theirs, ours).ok

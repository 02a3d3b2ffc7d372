"""The compared decoders draw what they say, on one engine."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, decode_rows, decoders
from benchmarks.decoders import Engine, NextCellSession, engine, export_engine, open_engine
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.decoding.loop import DecodingOptions, grow
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from serving.package.runtime import engine as runtime_engine
from serving.package.runtime.providers import load_graph

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
        "plan_tokens": 4,
    }
    return Generator(GeneratorConfig.model_validate(shape | changes)).eval()


@pytest.fixture(scope="module")
def exported(tokenizers, tmp_path_factory) -> Path:
    """The graphs of a next-token generator with details."""
    folder = tmp_path_factory.mktemp("exported") / "graphs"
    export_engine(folder, generator(), tokenizers, next_token=True)
    return folder


@pytest.fixture
def graph_runs(monkeypatch) -> Counter:
    """How often each graph ran, by its file's name: of all graphs that are loaded from now on."""
    runs = Counter()

    class Counted:
        def __init__(self, file: Path, *arguments, **options):
            self._name, self._graph = file.name, load_graph(file, *arguments, **options)

        def run(self, outputs, feeds):
            runs[self._name] += 1
            return self._graph.run(outputs, feeds)

    monkeypatch.setattr(decoders, "load_graph", Counted)
    monkeypatch.setattr(runtime_engine, "load_graph", Counted)
    return runs


def assert_cache_changes_nothing(made: Engine, shape: tuple[int, ...]) -> None:
    options = NextTokenOptions(temperature=1.0)
    cached, naive = (made.autoregressive("", options, cache=cache) for cache in (True, False))
    images = cached.draw(PROMPTS, [1, 2, 3])
    assert images.shape == shape
    assert (images == naive.draw(PROMPTS, [1, 2, 3])).mean() > 0.98
    assert not (images == cached.draw(PROMPTS, [4, 5, 6])).all()


def test_a_cache_does_not_change_the_image(tokenizers, exported):
    made = open_engine(exported, generator(), tokenizers, next_token=True, threads=1)
    assert_cache_changes_nothing(made, (3, 16, 32, 3))


def test_nor_one_without_details(tokenizers):
    with engine(generator(fine_layers=0, plan_tokens=0), tokenizers, next_token=True, threads=1) as made:
        assert_cache_changes_nothing(made, (3, 8, 16, 3))


@pytest.mark.parametrize("cache", [True, False])
def test_a_prompt_is_read_once_for_an_image(tokenizers, exported, graph_runs, cache):
    made = open_engine(exported, generator(), tokenizers, next_token=True, threads=1)
    made.autoregressive("", NextTokenOptions(), cache=cache).draw(PROMPTS, [1, 2, 3])
    cells = {"next.onnx" if cache else "sequence.onnx": 8}
    assert graph_runs == {"prefill.onnx": 1, **cells, "fine.onnx": 1, "image_decoder.onnx": 1}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_all_cells_in_one_graph_are_those_of_as_many_calls(tokenizers, exported, temperature):
    made = open_engine(exported, generator(), tokenizers, next_token=True, threads=1)
    options = NextTokenOptions(temperature=temperature)
    calls, at_once = made.autoregressive("", options, cache=True), made.next_at_once("", options)
    for prompts, seeds in ((PROMPTS, [1, 2, 3]), (PROMPTS[1:], [4, 5]), (PROMPTS[:1], [6])):
        assert (at_once.draw(prompts, seeds) == calls.draw(prompts, seeds)).mean() > 0.98
    assert not (at_once.draw(PROMPTS, [1, 2, 3]) == at_once.draw(PROMPTS, [4, 5, 6])).all()


@pytest.fixture(scope="module")
def one_scale(tokenizers) -> Iterator[Engine]:
    with engine(generator(fine_layers=0, plan_tokens=0), tokenizers, next_token=False, threads=1) as made:
        yield made


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_one_scale_in_one_graph_draws_what_its_graphs_one_by_one_draw(one_scale, temperature):
    options = DecodingOptions(temperature=temperature)
    calls, at_once = one_scale.parallel("", options, at_once=False), one_scale.parallel("", options)
    for prompts, seeds in ((PROMPTS, [1, 2, 3]), (PROMPTS[:1], [6])):
        images = at_once.draw(prompts, seeds)
        assert images.shape == (len(prompts), 8, 16, 3)
        assert (images == calls.draw(prompts, seeds)).mean() > 0.98
    assert not (at_once.draw(PROMPTS, [1, 2, 3]) == at_once.draw(PROMPTS, [4, 5, 6])).all()


@pytest.mark.parametrize(
    ("steps", "at_once", "runs"),
    [
        (1, True, {"draw.onnx": 1}),
        (1, False, {"prefill.onnx": 1, "coarse.onnx": 1, "image_decoder.onnx": 1}),
        (2, True, {"prefill.onnx": 1, "coarse.onnx": 2, "image_decoder.onnx": 1}),
    ],
)
def test_what_takes_noise_alone_is_one_call_where_that_is_asked_for(tokenizers, graph_runs, steps, at_once, runs):
    with engine(generator(fine_layers=0, plan_tokens=0), tokenizers, next_token=False, threads=1) as made:
        made.parallel("", DecodingOptions(coarse_steps=steps), at_once=at_once).draw(PROMPTS, [1, 2, 3])
    assert graph_runs == runs


def test_reading_a_prompt_once_gives_the_image_that_reading_it_twice_gives(tokenizers, exported):
    options = NextTokenOptions(temperature=1.0)
    made = open_engine(exported, generator(), tokenizers, next_token=True, threads=1)
    decoder = made.autoregressive("", options, cache=True)
    cells = NextCellSession(made.folder, made.generator, made.session, cache=True, threads=1)
    for prompts, seeds in ((PROMPTS, [1, 2, 3]), (PROMPTS[::-1].copy(), [4, 5, 6])):
        sketch = continue_tokens(cells, prompts, 8, options, seeds)
        again = made.session.prefill(prompts)
        *_, codes = grow(made.session, again, sketch, DecodingOptions(), seeds, 1)
        assert np.array_equal(decoder.draw(prompts, seeds), made.session.decode_image(codes))


def test_what_only_training_needs_is_no_parameter_of_a_decoder(tokenizers):
    model = generator()
    with engine(model, tokenizers, next_token=False, threads=1) as made:
        decoder = made.parallel("progressive", DecodingOptions())
        assert decoder.draw(PROMPTS, [1, 2, 3]).shape == (3, 16, 32, 3)
    encoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith("plan.encoder"))
    assert decoder.parameters == sum(p.numel() for p in model.parameters()) - encoder


@pytest.fixture(scope="module")
def both_precisions() -> Iterator[dict[str, Engine]]:
    """Of trained models: an untrained one is so unsure that rounding decides everything."""
    with ExitStack() as stack:
        names = ("progressive", "progressive, int8", "next-token", "next-token, int8")
        yield decode_rows.open_engines(stack, names)


@pytest.mark.slow
def test_int8_draws_nearly_the_same_images(both_precisions):
    prompts = decode_rows.calibration_prompts(checkpoints.load_tokenizers(), 16)[0]
    options = DecodingOptions(temperature=0.3, plan_temperature=0.8)
    full, rounded = (
        both_precisions[name].parallel("", options).draw(prompts, list(range(len(prompts)))).astype(int)
        for name in ("progressive", "progressive, int8")
    )
    assert full.shape == rounded.shape == (16, 64, 64, 3)
    assert 0 < np.abs(full - rounded).mean() < 0.5 * np.abs(full - np.roll(full, 1, axis=0)).mean()


@pytest.mark.slow
def test_int8_gives_nearly_the_same_next_cells(both_precisions):
    """Logit by logit: one cell drawn otherwise changes all that follow."""
    prompts = decode_rows.calibration_prompts(checkpoints.load_tokenizers(), 16)[0]
    full, rounded = (
        NextCellSession(engine.folder, engine.generator, engine.session, cache=True, threads=1)
        for engine in (both_precisions[name] for name in ("next-token", "next-token, int8"))
    )
    (expected, past), (found, other) = full.next_logits(prompts, None), rounded.next_logits(prompts, None)
    for _ in range(20):
        assert 0 < np.linalg.norm(found - expected) < 0.15 * np.linalg.norm(expected)
        ids = expected.argmax(-1)[:, None]
        (expected, past), (found, other) = full.next_logits(ids, past), rounded.next_logits(ids, other)

"""Reading a prompt apart from drawing its plan, and a prompt that comes again."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from model.decoding.loop import DecodingOptions, generate
from model.quantization.export_onnx import engine_graphs, export_graphs
from model.quantization.inference import without_plan
from model.quantization.split import split_prefill
from model.quantization.weights_pool import WEIGHTS_FILE, pool_weights
from serving.package.runtime.engine import EngineSession
from tests.model.quantization.conftest import random_generator

GRAPHS = engine_graphs(1)

CONFIG = {"visual_vocabulary": 12, "coarse_grid": (2, 4), "fine_grid": (4, 8), "plan_noise_shape": (4, 7)}
OPTIONS = DecodingOptions(coarse_steps=2, temperature=0.9, plan_temperature=1.0)
ONE_PROMPT_BYTES = 2 * 2 * 2 * 6 * 8 * 4 + 4 * 256 + 8 * 6
"""Keys and values of 2 layers, where the plan starts from, and the prompt's 6 tokens, which are its key."""


@pytest.fixture(params=["fp32", "int8"])
def folder(request, exported, quantized, tmp_path) -> Path:
    source = exported[2] if request.param == "fp32" else quantized[0]
    folder = shutil.copytree(source, tmp_path / "engine")
    pool_weights(folder, GRAPHS)
    before = (folder / WEIGHTS_FILE).stat().st_size
    shutil.rmtree(folder)
    shutil.copytree(source, folder)
    assert split_prefill(folder) == ("prompt", "plan")
    pool_weights(folder, (*GRAPHS, "prompt", "plan"))
    assert (folder / WEIGHTS_FILE).stat().st_size == before  # every weight of theirs is one of `prefill`
    return folder


def session(folder: Path, **options) -> EngineSession:
    return EngineSession(folder, CONFIG, threads=1, **options)


def prompts(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 40, (count, 6))


def images(session: EngineSession, text_ids: np.ndarray, seeds: list[int], guidance: float = 1.0) -> list[np.ndarray]:
    options = DecodingOptions(**(vars(OPTIONS) | {"guidance": guidance}))
    return [stage.pixels for stage in generate(session, text_ids, options, seeds, np.zeros(6, dtype=np.int64))]


def test_both_parts_give_what_the_whole_gives_to_the_last_bit(folder):
    text_ids, noise = prompts(3), np.random.default_rng(2).gumbel(size=(3, 4, 7)).astype(np.float32)
    past, plan, logits = session(folder, scores_plans=True).prefill(text_ids, noise)
    own_past, own_plan, none = session(folder).prefill(text_ids, noise)
    assert plan is not None and own_plan is not None and logits is not None and none is None
    np.testing.assert_array_equal(own_past, past)
    np.testing.assert_array_equal(own_plan, plan)
    assert len(np.unique(plan, axis=0)) == 3


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_prompt_that_is_known_gives_the_same_images_bit_for_bit(folder, guidance):
    fresh, keeping = session(folder), session(folder, prefix_cache_bytes=1 << 20)
    text_ids = prompts(4)
    for rows in ([0], [0], [1, 0], [0, 1, 2, 3], [3, 3, 0, 2], [2, 2]):
        for seed in (1, 50):
            seeds = [seed + number for number in range(len(rows))]
            asked = images(keeping, text_ids[rows], seeds, guidance)
            for found, expected in zip(asked, images(fresh, text_ids[rows], seeds, guidance), strict=True):
                np.testing.assert_array_equal(found, expected)
    kept = keeping._read._cache
    assert len(kept) == 4 + (guidance != 1)  # the prompt that says nothing is read once, too
    assert kept.kept_bytes == len(kept) * ONE_PROMPT_BYTES


def test_a_known_prompt_is_not_read_again(folder):
    asked = session(folder, prefix_cache_bytes=1 << 20)
    text_ids = prompts(3)
    first = images(asked, text_ids, [1, 2, 3], 3.0)
    asked._read._prompt = None  # nothing can be read any more
    for found, expected in zip(images(asked, text_ids, [1, 2, 3], 3.0), first, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert (images(asked, text_ids[:1], [9])[-1] != first[-1][:1]).any()  # the seed still decides
    with pytest.raises(AttributeError):
        images(asked, prompts(4)[3:], [1])


def test_the_bytes_are_bounded_and_the_longest_unasked_goes_first(folder):
    asked = session(folder, prefix_cache_bytes=2 * ONE_PROMPT_BYTES + 1)
    cache, text_ids = asked._read._cache, prompts(5)
    for row in (0, 1, 0, 2):
        asked.prefill(text_ids[[row]])
        assert cache.kept_bytes <= 2 * ONE_PROMPT_BYTES + 1
    assert [cache.get(text_ids[row].tobytes()) is not None for row in (0, 1, 2)] == [True, False, True]
    asked.prefill(text_ids)  # more at once than fit
    assert len(cache) == 2
    nothing = session(folder)
    nothing.prefill(text_ids)
    assert (len(nothing._read._cache), nothing._read._cache.kept_bytes) == (0, 0)


def test_a_model_without_plans_is_read_by_its_prefill(tmp_path, exported):
    export_graphs(without_plan(random_generator()), exported[1], tmp_path)
    assert split_prefill(tmp_path) == ()
    asked = EngineSession(tmp_path, CONFIG | {"plan_noise_shape": None}, threads=1, prefix_cache_bytes=1 << 20)
    first = images(asked, prompts(2), [1, 2])
    asked._read._prompt = None
    np.testing.assert_array_equal(images(asked, prompts(2), [1, 2])[-1], first[-1])

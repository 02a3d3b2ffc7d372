"""Bound graphs give what plain ones give, and copy what stays the same once. The device of the tests is the CPU."""

from pathlib import Path

import numpy as np
import pytest

from common.files import read_json
from serving.package.runtime.binding import BoundGraph
from serving.package.runtime.decoding.loop import DecodingOptions, generate
from serving.package.runtime.engine import EngineSession
from serving.package.runtime.providers import load_graph
from tests.engines import write_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_engine(tmp_path_factory.mktemp("engine") / "engine")


def images(engine: Path, options: DecodingOptions, bound: list[BoundGraph] | None) -> list[np.ndarray]:
    """The stages of two images; graphs that are bound are put into `bound`."""

    def load(path: Path) -> BoundGraph:
        graph = BoundGraph(load_graph(path, 1), "cpu")
        assert bound is not None
        bound.append(graph)
        return graph

    config = read_json(engine / "generator.json")
    session = EngineSession(engine / "fp32", config, threads=1, load=None if bound is None else load)
    text_ids = np.random.default_rng(0).integers(4, 20, (2, config["text_length"]))
    free = np.full(config["text_length"], config["special"]["pad"], dtype=np.int64)
    return [stage.pixels for stage in generate(session, text_ids, options, [3, 4], free)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_it_draws_the_same_and_copies_the_prompt_once_for_all_passes(engine: Path, guidance: float) -> None:
    options = DecodingOptions(coarse_steps=6, temperature=0.9, guidance=guidance)
    bound: list[BoundGraph] = []
    for plain, from_bound in zip(images(engine, options, None), images(engine, options, bound), strict=True):
        np.testing.assert_array_equal(plain, from_bound)
    assert sum(graph.uploads for graph in bound) == 2  # of the sketch's graph, and of the details'

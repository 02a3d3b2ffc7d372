"""`emuflow bench decode` from end to end, on so little that its numbers mean nothing and its form everything."""

import io
import json
import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console

from benchmarks import decode, decode_rows
from benchmarks.decoders import Decoder
from benchmarks.image_quality import Questions
from model.tokenizers.text import TextTokenizer

PROMISED = {
    "speedup_vs_best_ar": (5, 20),
    "speedup_vs_best_ar_any_precision": (None, 20),
    "speedup_vs_ar_cached": (15, 40),
    "speedup_vs_ar": (20, 200),
    "speedup_vs_one_scale": (4, 8),
    "quality_kept_accuracy": (0.987, 1.0),
    "frechet_excess_in_seed_spreads": (1, 0),
    "variety_vs_best_ar": (0.9, 1.1),
    "adapt_cost_share": (0.3, 0.1),
}
AMOUNT = decode.Amount(rounds=2, seeds=2, headline_seeds=3, one_scale_seeds=2, frechet_images=24, captions=12)


CAPTIONS = 8
UNEVEN = decode.Amount(seeds=3, headline_seeds=4, one_scale_seeds=2, frechet_images=1000, captions=CAPTIONS)


@pytest.fixture
def bench(tmp_path) -> decode.Bench:
    """With a judge that sees the mean colours of an image's quarters, which is enough for a distance, and reads those."""
    quarters = [
        helper.make_node("Transpose", ["images"], ["channels"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["channels"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("AveragePool", ["pixels"], ["means"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Flatten", ["means"], ["features"]),
        helper.make_node("Slice", ["features", "first", "ninth", "axis"], ["eight"]),
        helper.make_node("Reshape", ["eight", "slots"], ["labels"]),
        helper.make_node("Cast", ["labels"], ["readings"], to=TensorProto.INT64),
    ]
    constants = {"first": [0], "ninth": [8], "axis": [1], "slots": [-1, 4, 2]}
    graph = helper.make_graph(
        quarters,
        "quarters",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["n", 64, 64, 3])],
        [
            helper.make_tensor_value_info("readings", TensorProto.INT64, ["n", 4, 2]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 12]),
        ],
        [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()],
    )
    judge = tmp_path / "judge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), judge)
    return decode.Bench(Questions.of(TextTokenizer.train(["a red seven"], 300), 40, CAPTIONS), judge, UNEVEN)


def by_seed(name: str, asked: list[int]) -> Decoder:
    """Draws noise that depends on the seed alone, and notes what it was asked for."""

    def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
        asked.extend(seeds)
        return np.stack([np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8) for seed in seeds])

    return Decoder(name, 0, draw)


def test_every_distance_is_of_as_many_images(bench):
    """A distance falls with the number of images alone: those of equal images must be equal."""
    drawn = {}
    for name in (decode_rows.OURS, decode_rows.OURS_INT8, decode_rows.ONE_SCALE[4]):
        bench.measure(name, by_seed(name, drawn.setdefault(name, [])))
    assert [len(asked) for asked in drawn.values()] == [3 * CAPTIONS, 4 * CAPTIONS, 2 * CAPTIONS]
    assert bench.frechet_images == 2 * CAPTIONS
    assert len({bench.rows[name].frechet for name in drawn}) == 1


def test_other_seeds_are_drawn_for_the_distance_alone(bench):
    asked = []
    decoder = by_seed(decode_rows.BEST_AR_INT8, asked)
    bench.measure(decoder.name, decoder)
    first = bench.draw(decoder, series=1)
    asked.clear()
    spread = bench.frechet_spread(decoder)
    assert asked == [*range(4 * CAPTIONS, 6 * CAPTIONS), *range(8 * CAPTIONS, 10 * CAPTIONS)]
    assert spread >= abs(bench.frechet(first) - bench.rows[decoder.name].frechet) > 0


@pytest.mark.slow
def test_every_row_and_every_promise_is_in_the_result(judges, tmp_path):
    shown = io.StringIO()
    file = tmp_path / "decode.json"
    held = decode.run(judges, Console(file=shown, width=120), file, AMOUNT)
    result = json.loads(file.read_text())
    assert result["benchmark"] == "decode"
    names = [row["name"] for row in result["rows"]]
    assert names == [*decode_rows.PARALLEL, *decode_rows.AUTOREGRESSIVE, *decode_rows.ONE_GRAPH]
    for row in result["rows"]:
        calls = decode_rows.ONE_GRAPH.get(row["name"], row["name"])
        headline = calls in (decode_rows.OURS_INT8, decode_rows.BEST_AR_INT8)
        assert (
            row["n"] == (36 if headline else 24) and 0 <= row["accuracy"] <= 1 and 0 < row["median_ms"] <= row["p95_ms"]
        )
        assert math.isfinite(row["frechet"]) and row["low"] <= row["accuracy_minus_ours"] <= row["high"]
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: (checks[name]["bound"], checks[name]["aim"]) for name in PROMISED} == PROMISED
    assert held == all(check["ok"] for check in result["checks"])
    assert 0 <= result["neighbours_share"] <= 1
    assert result["frechet_images"] == 24 == checks["frechet_excess_in_seed_spreads"]["n"]
    compared = result["one_scale_compared"]["name"]
    assert decode_rows.ONE_GRAPH.get(compared, compared) in decode_rows.ONE_SCALE.values()
    with Image.open(file.with_suffix(".png")) as picture:
        assert picture.width > 1000
    assert "speedup_vs_best_ar" in shown.getvalue() and "quality, 1 of" in shown.getvalue()

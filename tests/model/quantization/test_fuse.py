"""The one graph that draws a whole image."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from model.decoding.loop import DecodingOptions, generate
from model.quantization.export_onnx import engine_graphs, transformer_graphs
from model.quantization.fuse import DRAW, fuse_graphs
from model.quantization.split import split_prefill
from model.quantization.weights_pool import WEIGHTS_FILE, pool_weights
from serving.package.runtime.engine import EngineSession

GRAPHS = engine_graphs(1)
TRANSFORMER_GRAPHS = transformer_graphs(1)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_one_graph_draws_what_the_loop_draws(exported, quantized, tmp_path, precision, temperature):
    """Pixel for pixel, in both precisions, for prompts in one batch; with its weights pooled it is hardly larger."""
    generator, _, fp32, _ = exported
    folder = shutil.copytree(fp32 if precision == "fp32" else quantized[0], tmp_path / "engine")
    fuse_graphs(folder, generator.config.grids, generator.config.visual_vocabulary)
    pool_weights(folder, (*GRAPHS, DRAW, *split_prefill(folder)))
    config = {
        "visual_vocabulary": 12,
        "coarse_grid": generator.config.coarse_grid,
        "fine_grid": (4, 8),
        "plan_noise_shape": (generator.config.plan_tokens, 7),
    }
    session = EngineSession(folder, config, threads=1)
    text_ids = np.random.default_rng(1).integers(0, 40, (3, 6))
    options = DecodingOptions(temperature=temperature, plan_temperature=1.0, previews=False)
    (at_once,) = generate(session, text_ids, options, [1, 2, 3])
    assert "_draw" in vars(session)  # it was asked
    sketch, final = generate(session, text_ids, replace(options, previews=True), [1, 2, 3])
    assert sketch.pixels.shape == (3, 8, 16, 3)
    np.testing.assert_array_equal(at_once.pixels, final.pixels)
    assert (final.pixels[0] != final.pixels[1]).any()
    assert (folder / "draw.onnx").stat().st_size < 0.5 * (folder / WEIGHTS_FILE).stat().st_size


def test_every_quantized_layer_of_the_whole_computes_in_int8(exported, quantized, tmp_path):
    """onnxruntime leaves a product in fp32, and scales its weights anew for every image, where two share what they read."""
    generator = exported[0]
    folder = shutil.copytree(quantized[0], tmp_path / "engine")
    fuse_graphs(folder, generator.config.grids, generator.config.visual_vocabulary)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(folder / "draw.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "optimized.onnx").graph
    constants = {tensor.name for tensor in graph.initializer}
    assert not [node.name for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    kinds = [node.op_type for node in graph.node]
    both = {"plan.spread.2"}  # the sketch and the details read one plan
    expected = sum(len(quantized[1][graph]) for graph in TRANSFORMER_GRAPHS) - len(both)
    assert kinds.count("MatMulIntegerToFloat") == expected and kinds.count("QLinearConv") == 1


def test_no_two_products_read_the_same_int8_weights(exported, quantized, tmp_path):
    """Where a processor has no VNNI, onnxruntime rewrites them for each product, and refuses a graph that shares them."""
    generator = exported[0]
    folder = shutil.copytree(quantized[0], tmp_path / "engine")
    fuse_graphs(folder, generator.config.grids, generator.config.visual_vocabulary)
    graph = onnx.load(folder / "draw.onnx").graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    assert len(constants) == len(graph.initializer)
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in constants]
    read = [node.input[place] for node in weights for place in (0, 2)]
    assert len(weights) > 10 and len(read) == len(set(read))
    contents = [constants[node.input[0]].raw_data for node in weights]
    assert len(set(contents)) < len(contents)  # the prompt and the sketch go through the same blocks


def test_what_takes_a_look_at_the_sketch_is_not_drawn_at_once(exported, tmp_path):
    _, _, fp32, _ = exported
    folder = shutil.copytree(fp32, tmp_path / "engine")
    (folder / "draw.onnx").write_bytes(b"no graph")
    split_prefill(folder)
    config = {"visual_vocabulary": 12, "coarse_grid": (2, 4), "fine_grid": (4, 8), "plan_noise_shape": (4, 7)}
    session, text_ids = EngineSession(folder, config, threads=1), np.zeros((1, 6), dtype=np.int64)
    for changes in (
        {"previews": True},
        {"coarse_steps": 2},
        {"redraw_below": 0.1},
        {"fine_temperature": 0.5},
        {"fine_redraw_below": 0.1},
        {"top_k": 3},
        {"top_p": 0.9},
    ):
        options = DecodingOptions(**{"previews": False, **changes})
        assert list(generate(session, text_ids, options, [1]))[-1].pixels.shape == (1, 16, 32, 3)
    with pytest.raises(Exception, match=r"draw\.onnx"):
        list(generate(session, text_ids, DecodingOptions(previews=False), [1]))

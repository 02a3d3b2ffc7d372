"""Fault 13 at every kind of layer that is quantized: what goes into it in the graph is what its scale is made of."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from common.errors import QuantizationError
from model.quantization.ranges import check_coverage, input_ranges
from model.quantization.static_int8 import quantizable_layers, quantize_graph

KINDS = {
    "a block": ("coarse", "blocks.1.mlp.down_proj"),
    "the sketch's head": ("coarse", "coarse_head"),
    "the details' head": ("fine", "fine_head"),
    "the plan": ("coarse", "plan.spread.2"),
    "a convolution": ("image_decoder", "decoder.1.spatial/node_conv2d_1"),
}
"""Graph and layer of each kind."""


def times(source: Path, target: Path, layer: str, factor: float) -> Path:
    """The graph with what goes into the layer times a factor, and nothing else changed."""
    model = onnx.load(source)
    position, node = next((number, node) for number, node in enumerate(model.graph.node) if node.name == layer)
    model.graph.initializer.append(numpy_helper.from_array(np.array(factor, dtype=np.float32), "the_factor"))
    product = helper.make_node("Mul", [node.input[0], "the_factor"], ["times_the_factor"], name="damage")
    node.input[0] = "times_the_factor"
    model.graph.node.insert(position, product)
    onnx.save(model, target)
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "its input is zero on all"),
        (float("nan"), "its input is NaN or inf"),
        (float("inf"), "its input is NaN or inf"),
    ],
)
def test_fault_13_whatever_is_quantized_is_watched_and_named(exported, quantized, tmp_path, kind, factor, message):
    _, _, fp32, feeds = exported
    graph, layer = KINDS[kind]
    damaged = times(fp32 / f"{graph}.onnx", tmp_path / f"{graph}.onnx", layer, factor)
    assert layer in quantized[1][graph]
    with pytest.raises(QuantizationError) as refused:
        quantize_graph(damaged, tmp_path / "int8.onnx", feeds[graph], [layer])
    assert refused.value.where == layer and refused.value.what.startswith(message)
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_fault_13_a_layer_without_data_is_named(exported, tmp_path, kind):
    graph, layer = KINDS[kind]
    with pytest.raises(QuantizationError, match="it saw no calibration data") as refused:
        quantize_graph(exported[2] / f"{graph}.onnx", tmp_path / "int8.onnx", [], [layer])
    assert refused.value.where == layer


@pytest.mark.parametrize("kind", KINDS)
def test_fault_13_calibration_data_unlike_the_rest_is_refused(exported, quantized, tmp_path, kind):
    _, _, fp32, feeds = exported
    graph, layer = KINDS[kind]
    layers = quantized[1][graph]
    calibrated = input_ranges(fp32 / f"{graph}.onnx", feeds[graph], layers)
    assert calibrated.keys() == set(layers)
    check_coverage(calibrated, calibrated, largest_excess=1.0)
    other = times(fp32 / f"{graph}.onnx", tmp_path / f"{graph}.onnx", layer, 3.0)
    elsewhere = input_ranges(other, feeds[graph], layers)
    assert elsewhere[layer] == pytest.approx(3 * calibrated[layer], rel=1e-3)
    with pytest.raises(QuantizationError, match=r"held-out data reaches 3\.00 times") as refused:
        check_coverage({layer: calibrated[layer]}, elsewhere, largest_excess=2.0)
    assert refused.value.where == layer


def test_the_ranges_are_those_that_the_scales_are_made_of(exported, quantized, tmp_path):
    _, _, fp32, feeds = exported
    for graph, layers in quantized[1].items():
        again = shutil.copy(fp32 / f"{graph}.onnx", tmp_path)
        ranges = input_ranges(again, feeds[graph], layers)
        model = onnx.load(quantized[0] / f"{graph}.onnx").graph
        tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.initializer}
        nodes = {node.name: node for node in model.node} | {node.output[0]: node for node in model.node}
        for layer in layers:
            scale = tensors[nodes[nodes[layer].input[0]].input[1]]
            assert scale == pytest.approx(ranges[layer] / 127, rel=1e-3), layer


def test_layers_are_what_is_found_in_a_graph(exported):
    """Every kind of layer that is quantized has its row above."""
    fp32 = exported[2]
    found = {
        layer
        for graph in ("coarse", "fine", "image_decoder")
        for layer in quantizable_layers(onnx.load(fp32 / f"{graph}.onnx"), heads=True)
    }
    assert {layer for _, layer in KINDS.values()} <= found
    assert {layer for layer in found if not layer.startswith("blocks.")} <= {layer for _, layer in KINDS.values()}

"""The exported graphs against torch, and their INT8 forms against both."""

import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from common.errors import QuantizationError
from model.quantization.export_onnx import engine_graphs, export_graphs, transformer_graphs
from model.quantization.fidelity import measure_fidelity
from model.quantization.inference import with_plain_tables
from model.quantization.size import block_bytes
from model.quantization.static_int8 import check_explicit_quantization, quantizable_layers, quantize_graph
from model.quantization.weights_pool import WEIGHTS_FILE, pool_weights
from model.transformer.session import TorchSession
from serving.package.runtime.providers import load_graph

GRAPHS = engine_graphs(1)
TRANSFORMER_GRAPHS = transformer_graphs(1)


def run(path, output=0, **inputs):
    """As the package's runtime loads it."""
    return load_graph(path, 1).run(None, inputs)[output]


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_graphs_compute_what_torch_computes_for_any_batch(exported, batch):
    generator, visual, folder, _ = exported
    session = TorchSession(generator, visual)
    random = np.random.default_rng(batch)
    text_ids = random.integers(0, 40, (batch, 6))
    coarse, fine = random.integers(0, 12, (batch, 8)), random.integers(0, 13, (batch, 8, 4))
    plan = random.integers(0, 12, (batch, generator.config.plan_tokens))
    noise = random.gumbel(size=(batch, generator.config.plan_tokens, 7)).astype(np.float32)
    past, plan_ids, plan_logits = (
        run(folder / "prefill.onnx", output, text_ids=text_ids, plan_noise=noise) for output in range(3)
    )
    expected_past, expected_ids, expected_logits = session.prefill(text_ids, noise)
    np.testing.assert_allclose(past, expected_past, atol=2e-5)
    np.testing.assert_array_equal(plan_ids, expected_ids)
    np.testing.assert_allclose(plan_logits, expected_logits, atol=2e-5)
    logits = run(folder / "coarse.onnx", past=past, coarse_ids=coarse, plan_ids=plan)
    np.testing.assert_allclose(logits, session.coarse(past, coarse, plan), atol=2e-4)
    logits = run(folder / "fine.onnx", past=past, coarse_ids=coarse, fine_ids=fine, plan_ids=plan)
    np.testing.assert_allclose(logits, session.fine(past, coarse, fine, plan), atol=2e-4)


def test_a_graph_is_exported_in_one_attempt(exported, tmp_path, monkeypatch):
    """Where the exporter's first way fails it takes a slower one, without a word."""
    generator, visual, _, _ = exported
    attempts, export = [], torch.export.export

    def noted(*arguments, **options):
        attempts.append(options["strict"])
        return export(*arguments, **options)

    monkeypatch.setattr(torch.export, "export", noted)
    export_graphs(with_plain_tables(generator), visual, tmp_path, names=("coarse", "fine"))
    assert attempts == [False, False]


def test_the_baselines_graphs_draw_the_next_token(exported, tmp_path):
    generator, visual, _, _ = exported
    export_graphs(with_plain_tables(generator), visual, tmp_path, names=("next", "sequence"))
    random = np.random.default_rng(0)
    text_ids, cells = random.integers(0, 40, (3, 6)), random.integers(0, 12, (3, 5))
    known = np.concatenate([np.full((3, 1), 12), cells], 1)
    expected = generator.sequence_logits(torch.from_numpy(text_ids), torch.from_numpy(known)).detach().numpy()
    past = generator.prefill(torch.from_numpy(text_ids)).past.detach().numpy()
    session = onnxruntime.InferenceSession(str(tmp_path / "next.onnx"), providers=["CPUExecutionProvider"])
    for cell in range(6):
        feeds = {"past": past, "previous_ids": known[:, cell : cell + 1], "first": np.array([cell])}
        logits, past = session.run(["logits", "present"], feeds)
        np.testing.assert_allclose(logits, expected[:, cell], atol=2e-4)
        whole = run(tmp_path / "sequence.onnx", text_ids=text_ids, previous_ids=known[:, : cell + 1])
        np.testing.assert_allclose(whole, expected[:, cell], atol=2e-4)


@pytest.mark.parametrize("grid", [(2, 4), (4, 8), (3, 3)])
def test_the_image_decoder_gives_torchs_pixels_for_any_grid(exported, grid):
    generator, visual, folder, _ = exported
    codes = np.random.default_rng(0).integers(0, 12, (3, *grid))
    pixels = run(folder / "image_decoder.onnx", codes=codes)
    expected = TorchSession(generator, visual).decode_image(codes)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, 4 * grid[0], 4 * grid[1], 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 1


def test_files_name_layers_and_hold_no_trace_of_the_machine(exported):
    _, _, folder, _ = exported
    for graph in GRAPHS:
        content = (folder / f"{graph}.onnx").read_bytes()
        assert b".py" not in content
        assert b"site-packages" not in content
    layers = quantizable_layers(onnx.load(folder / "fine.onnx"), heads=True)
    blocks = ("attention.qkv_proj", "attention.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    assert layers == ["plan.spread.2", *(f"blocks.0.{layer}" for layer in blocks), "fine_head"]
    assert quantizable_layers(onnx.load(folder / "fine.onnx"), heads=False) == layers[:-1]
    of_prompt = quantizable_layers(onnx.load(folder / "prefill.onnx"), heads=True)
    assert of_prompt and all(name.startswith("blocks.") for name in of_prompt), "the plan's draw is no layer"


def test_int8_draws_the_plans_that_fp32_draws(exported, quantized):
    """Under ordinary noise: what a graph is calibrated and compared with settles every code by force."""
    generator, _, fp32, _ = exported
    random = np.random.default_rng(3)
    text_ids = random.integers(0, 40, (64, 6))
    noise = random.gumbel(size=(64, generator.config.plan_tokens, 7)).astype(np.float32)
    full, rounded = (
        run(folder / "prefill.onnx", 1, text_ids=text_ids, plan_noise=noise) for folder in (fp32, quantized[0])
    )
    assert (full == rounded).mean() > 0.9
    other = run(fp32 / "prefill.onnx", 1, text_ids=text_ids, plan_noise=noise[::-1].copy())
    assert (full == other).mean() < 0.5


def test_int8_is_close_and_every_layer_is_reported(exported, quantized):
    _, _, fp32, feeds = exported
    int8, layers = quantized
    for graph in TRANSFORMER_GRAPHS:
        found = measure_fidelity(fp32 / f"{graph}.onnx", int8 / f"{graph}.onnx", feeds[graph], layers[graph])
        assert 0 < found.output < 0.2
        assert list(found.layers) == layers[graph]
        assert all(0 < error < 0.1 for layer, error in found.layers.items() if layer.startswith("blocks."))
        assert found.agreement is not None and found.agreement > 0.7, graph


def test_a_graph_agrees_with_itself(exported):
    _, _, fp32, feeds = exported
    path = fp32 / "coarse.onnx"
    found = measure_fidelity(path, path, feeds["coarse"], ["blocks.0.mlp.down_proj"])
    assert (found.output, found.agreement, found.layers) == (0.0, 1.0, {"blocks.0.mlp.down_proj": 0.0})


def test_block_weights_are_the_same_in_every_int8_graph(quantized):
    int8, _ = quantized
    seen = {}
    for graph in TRANSFORMER_GRAPHS:
        for tensor in onnx.load(int8 / f"{graph}.onnx").graph.initializer:
            if tensor.name.startswith("blocks.") and tensor.name.endswith(("_quantized", "weight_scale")):
                content = onnx.numpy_helper.to_array(tensor).tobytes()
                assert seen.setdefault(tensor.name, content) == content
    assert len(seen) == 16


def test_pooled_weights_are_stored_once_and_change_no_answer(exported, quantized, tmp_path):
    _, _, _, feeds = exported
    before, _ = quantized
    after = shutil.copytree(before, tmp_path / "pooled")
    pool_weights(after, GRAPHS)
    for graph in TRANSFORMER_GRAPHS:
        expected = run(before / f"{graph}.onnx", **feeds[graph][0])
        np.testing.assert_array_equal(run(after / f"{graph}.onnx", **feeds[graph][0]), expected)
    pool = (after / WEIGHTS_FILE).read_bytes()
    matrix = next(
        tensor.raw_data
        for tensor in onnx.load(before / "coarse.onnx").graph.initializer
        if tensor.name == "blocks.0.mlp.gate_up_proj.weight_quantized"
    )
    assert pool.count(matrix) == 1
    for graph in GRAPHS:
        tensors = onnx.load(after / f"{graph}.onnx", load_external_data=False).graph.initializer
        pooled = [tensor for tensor in tensors if tensor.data_location == onnx.TensorProto.EXTERNAL]
        # Names and offsets: no tensor is in the graph's file, too, in whichever field it was.
        assert pooled and max(tensor.ByteSize() for tensor in pooled) < 200
    assert sum(path.stat().st_size for path in after.iterdir()) < sum(path.stat().st_size for path in before.iterdir())


def test_block_bytes_are_the_parameters_of_the_blocks(exported, quantized, tmp_path):
    generator, _, fp32, _ = exported
    int8, _ = quantized
    # The last block's key norm and such may be shared or cut off; the four matrices make up nearly all of it.
    expected = sum(p.numel() * 4 for p in generator.blocks.parameters())
    assert block_bytes(fp32, TRANSFORMER_GRAPHS) == pytest.approx(expected, rel=0.02)
    matrices = sum(p.numel() for p in generator.blocks.parameters() if p.dim() == 2)
    assert matrices < block_bytes(int8, TRANSFORMER_GRAPHS) < 1.4 * matrices
    shutil.copytree(int8, tmp_path / "pooled")
    pool_weights(tmp_path / "pooled", GRAPHS)
    assert block_bytes(tmp_path / "pooled", TRANSFORMER_GRAPHS) == block_bytes(int8, TRANSFORMER_GRAPHS)


def test_int8_graphs_keep_tensorrts_rules(quantized):
    folder, layers = quantized
    for graph in GRAPHS:
        model = onnx.load(folder / f"{graph}.onnx")
        check_explicit_quantization(model, layers[graph])
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 21)]
    assert layers["image_decoder"] == ["decoder.1.spatial/node_conv2d_1"]


def test_int8_is_computed_without_overflow_on_any_processor(exported, quantized):
    """What onnxruntime makes of Q/DQ pairs is what the pairs say: on a processor without VNNI sums would overflow."""
    codes = exported[3]["image_decoder"][0]["codes"]
    file, options = quantized[0] / "image_decoder.onnx", onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    said = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]).run(
        None, {"codes": codes}
    )
    assert np.abs(run(file, codes=codes).astype(int) - said[0].astype(int)).mean() < 0.5


def test_int8_pixels_are_those_of_fp32_but_for_a_few_levels(exported, quantized):
    _, _, fp32, feeds = exported
    codes = feeds["image_decoder"][0]["codes"]
    full, rounded = (run(folder / "image_decoder.onnx", codes=codes).astype(int) for folder in (fp32, quantized[0]))
    assert 0 < np.abs(full - rounded).mean() < 1.5


def test_what_is_no_product_takes_fewer_bytes(exported, quantized):
    _, _, fp32, _ = exported
    kept = {
        tensor.name: onnx.numpy_helper.to_array(tensor)
        for graph in TRANSFORMER_GRAPHS
        for tensor in onnx.load(quantized[0] / f"{graph}.onnx").graph.initializer
    }
    full = {tensor.name: tensor for tensor in onnx.load(fp32 / "prefill.onnx").graph.initializer}
    table = onnx.numpy_helper.to_array(full["text_embedding.weight"])
    scaled = kept["text_embedding.weight_quantized"] * kept["text_embedding.weight_scale"]
    assert kept["text_embedding.weight_quantized"].dtype == np.int8
    np.testing.assert_allclose(scaled, table, atol=0.51 * float(kept["text_embedding.weight_scale"]))
    assert kept["plan.prior.heads_half"].dtype == np.float16
    assert not {"text_embedding.weight", "plan.prior.heads"} & kept.keys()


@pytest.mark.parametrize("graph", TRANSFORMER_GRAPHS)
def test_lean_layers_compute_the_same_with_fewer_operators(exported, graph, tmp_path):
    generator, visual, lean, feeds = exported
    export_graphs(with_plain_tables(generator), visual, tmp_path, names=[graph], lean=False)
    expected, found = (run(folder / f"{graph}.onnx", **feeds[graph][0]) for folder in (tmp_path, lean))
    np.testing.assert_allclose(found, expected, atol=2e-4)
    plain, fewer = (len(onnx.load(folder / f"{graph}.onnx").graph.node) for folder in (tmp_path, lean))
    assert fewer < 0.9 * plain


def _tensor(model, ending):
    return next(tensor for tensor in model.graph.initializer if tensor.name.endswith(ending))


def _shift_zero_point(model):
    tensor = _tensor(model, "down_proj.weight_zero_point")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[0] = 3
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def _zero_scale(model):
    tensor = _tensor(model, "down_proj.weight_scale")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(32, np.float32), tensor.name))


def _older_opset(model):
    model.opset_import[0].version = 20


def _foreign_node(model):
    model.graph.node[0].domain = "com.microsoft"


def _unquantized_input(model):
    product = next(node for node in model.graph.node if node.name.endswith("down_proj"))
    dequantize = next(node for node in model.graph.node if product.input[0] in node.output)
    quantize = next(node for node in model.graph.node if dequantize.input[0] in node.output)
    product.input[0] = quantize.input[0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_shift_zero_point, r"blocks\.0\.mlp\.down_proj: a zero point"),
        (_zero_scale, r"blocks\.0\.mlp\.down_proj: a scale is zero"),
        (_older_opset, "its opset is 20, below 21"),
        (_foreign_node, r"com\.microsoft"),
        (_unquantized_input, r"down_proj: its activations are not quantized"),
    ],
)
def test_a_graph_that_breaks_a_rule_is_refused(quantized, damage, message):
    folder, layers = quantized
    model = onnx.load(folder / "fine.onnx")
    damage(model)
    with pytest.raises(QuantizationError, match=message):
        check_explicit_quantization(model, layers["fine"])


def test_quantizing_twice_gives_the_same_bytes(exported, quantized, tmp_path):
    _, _, fp32, feeds = exported
    int8, layers = quantized
    quantize_graph(fp32 / "fine.onnx", tmp_path / "fine.onnx", feeds["fine"], layers["fine"])
    assert (tmp_path / "fine.onnx").read_bytes() == (int8 / "fine.onnx").read_bytes()


def test_a_percentile_clips_what_lies_beyond_it(exported, quantized, tmp_path):
    _, _, fp32, feeds = exported
    int8, layers = quantized
    quantize_graph(fp32 / "fine.onnx", tmp_path / "fine.onnx", feeds["fine"], layers["fine"], percentile=95.0)
    whole, clipped = (activation_scales(folder / "fine.onnx") for folder in (int8, tmp_path))
    assert whole.keys() == clipped.keys() and len(whole) >= len(set(layers["fine"])) / 2
    assert all(0 < clipped[name] < whole[name] for name in whole)
    check_explicit_quantization(onnx.load(tmp_path / "fine.onnx"), layers["fine"])


def activation_scales(path) -> dict[str, float]:
    """The scale of each activation that is quantized, by its name."""
    graph = onnx.load(path).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] not in constants]
    return {node.input[0]: float(constants[node.input[1]]) for node in nodes}

"""The step on a small checkpoint, run once: its engine against the contract of docs/architecture.md."""

import hashlib
import shutil

import numpy as np
import onnx
import pytest
import torch

from common.errors import DigestMismatchError, QuantizationError
from common.files import read_json, write_json
from components.calibrate.calibrate import calibrate
from components.calibrate.engine import check_engine_coverage
from components.calibrate.heldout import heldout_questions
from components.calibrate.settings import CalibrationSettings
from model.checkpoint import load_checkpoint, save_checkpoint
from model.data.grids import read_grids
from model.data.shards import RecordLayout, Shards, ShardWriter, write_manifest
from model.decoding.loop import DecodingOptions
from model.objectives.heldout import fixed_masks, heldout_losses
from model.quantization.observe import observe
from model.quantization.ranges import input_ranges
from model.quantization.static_int8 import quantizable_layers
from model.tokenizers.bundle import TokenizerBundle, record_metrics, save_tokenizers
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer, VisualTokenizerConfig
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from serving.package.runtime.providers import load_graph

CAPTIONS = [f"a {color} {digit}" for color in ("red", "blue") for digit in ("one", "two", "three")]
SETTINGS = CalibrationSettings(prompts=8, measured_prompts=4, batch_size=4, coarse_steps=2)
LAYOUT = RecordLayout(text_length=8, coarse_grid=(4, 4))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A checkpoint with random weights, and shards of its tokenizers."""
    folder = tmp_path_factory.mktemp("inputs")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_tokenizers(
            folder / "tokenizers",
            TextTokenizer.train(CAPTIONS * 4, 290),
            VisualTokenizer(VisualTokenizerConfig(levels=(4, 3), width=16, depth=1)),
        )
        record_metrics(folder / "tokenizers", {"ssim": 0.5, "psnr_db": 12.0})
        bundle = TokenizerBundle.load(folder / "tokenizers")
        config = GeneratorConfig(
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            text_vocabulary=bundle.text.vocabulary,
            text_length=LAYOUT.text_length,
            visual_levels=(4, 3),
            coarse_grid=(4, 4),
            fine_layers=1,
            plan_tokens=4,
        )
        training = {"unconditional_share": 0.25}
        save_checkpoint(folder / "checkpoint", Generator(config), folder / "tokenizers", training)
    write_shards(folder / "shards", bundle)
    return folder


def write_shards(folder, bundle, heldout=12):
    random = np.random.default_rng(0)
    counts = {"train": 12, "heldout": heldout}
    for split, count in counts.items():
        captions = [CAPTIONS[row % len(CAPTIONS)] for row in range(count)]
        prompts = np.array([bundle.text.encode_prompt(caption, LAYOUT.text_length) for caption in captions])
        ids = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(count)]
        with ShardWriter(folder, split, LAYOUT) as writer:
            writer.add(ids, prompts, [random.integers(0, 12, (count, tokens)) for tokens in (16, 64)])
    groups = {"heldout": [row // 3 for row in range(heldout)]}
    write_manifest(folder, LAYOUT, counts, tokenizers_digest=bundle.digest, groups=groups)


@pytest.fixture(scope="module")
def engine(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "engine"
    result = calibrate(SETTINGS, inputs / "checkpoint", inputs / "shards", folder)
    return folder, result


def run(path, **feeds):
    """As the package's runtime loads it."""
    return load_graph(path, 1).run(None, feeds)[0]


def test_the_engine_holds_what_the_contract_names(engine):
    folder, _ = engine
    graphs = {f"{name}.onnx" for name in ("prefill", "prompt", "plan", "coarse", "fine", "image_decoder", "draw")}
    assert {path.name for path in folder.iterdir()} == {
        "fp32",
        "int8",
        "generator.json",
        "calibration.json",
        "tokenizers",
    }
    for precision in ("fp32", "int8"):
        assert {path.name for path in (folder / precision).iterdir()} == graphs | {"weights.bin"}
    assert (folder / "tokenizers/text/tokenizer.json").is_file()


def test_generator_json_describes_the_graphs(engine, inputs):
    folder, _ = engine
    generator = read_json(folder / "generator.json")
    bundle = TokenizerBundle.load(inputs / "tokenizers")
    assert generator == {
        "text_length": 8,
        "text_vocabulary": bundle.text.vocabulary,
        "special": bundle.text.special,
        "coarse_grid": [4, 4],
        "fine_grid": [8, 8],
        "unconditional_share": 0.25,
        "plan_noise_shape": [4, 7],
        "visual_vocabulary": 12,
        "mask_id": 12,
        "image_size": [32, 32],
        "layers": 2,
        "kv_heads": 2,
        "head_dim": 32,
    }


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_both_precisions_compute_the_checkpoint(engine, inputs, precision):
    folder, _ = engine
    generator = load_checkpoint(inputs / "checkpoint")
    text_ids = Shards(inputs / "shards", "heldout").batch([0, 1, 2]).text_ids
    coarse_ids = np.full((3, 16), 12)
    plan = np.random.default_rng(0).integers(0, generator.config.visual_vocabulary, (3, 4))
    noise = np.zeros((3, 4, 7), dtype=np.float32)
    past = run(folder / precision / "prefill.onnx", text_ids=text_ids, plan_noise=noise)
    logits = run(folder / precision / "coarse.onnx", past=past, coarse_ids=coarse_ids, plan_ids=plan)
    with torch.no_grad():
        reference = generator.prefill(torch.from_numpy(text_ids)).past
        expected = generator.coarse_logits(reference, torch.from_numpy(coarse_ids), torch.from_numpy(plan)).numpy()
    error = np.linalg.norm(logits - expected) / np.linalg.norm(expected)
    assert error < (1e-5 if precision == "fp32" else 0.15)


def test_calibration_json_reports_sizes_and_errors(engine, inputs):
    folder, result = engine
    report = read_json(folder / "calibration.json")
    assert report["block_bytes"]["ratio"] == report["block_bytes"]["int8"] / report["block_bytes"]["fp32"]
    assert 0.25 < result.block_bytes_ratio == report["block_bytes"]["ratio"] < 0.3
    assert report["engine_bytes"]["ratio"] == result.engine_bytes_ratio < 1
    assert report["tokenizers_digest"] == TokenizerBundle.load(inputs / "tokenizers").digest
    assert report["ssim"] == 0.5
    assert report["prompts"] == {"calibration": 8, "measured": 4}
    assert set(report["fidelity"]["coarse"]["layers"]) >= {"blocks.0.attention.qkv_proj", "blocks.1.mlp.down_proj"}
    assert 0 < result.output_error["fine"] < 0.25


def test_the_graphs_lose_what_the_checkpoint_loses_under_the_same_masks(engine, inputs):
    report = read_json(engine[0] / "calibration.json")["heldout"]
    heldout = Shards(inputs / "shards", "heldout")
    checkpoint = load_checkpoint(inputs / "checkpoint")
    expected = heldout_losses(checkpoint, read_grids(heldout, list(range(12)), checkpoint.config))
    full, int8 = (np.array(report["loss_per_sample"][precision]) for precision in ("fp32", "int8"))
    assert full == pytest.approx(expected, abs=1e-4)
    assert int8 == pytest.approx(full, abs=0.05) and not np.allclose(int8, full, atol=1e-6)
    ids = "".join(heldout.sample_id(row) for row in range(12))
    assert report["samples_digest"] == hashlib.sha256(bytes.fromhex(ids)).hexdigest()
    assert (report["text_length"], report["coarse_grid"], report["fine_grid"]) == (8, [4, 4], [8, 8])
    assert report["groups"] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


def test_heldout_samples_beyond_the_bound_are_thinned_out_and_keep_their_masks(tmp_path, inputs):
    write_shards(tmp_path, TokenizerBundle.load(inputs / "tokenizers"), heldout=150)
    heldout = Shards(tmp_path, "heldout")
    generator = load_checkpoint(inputs / "checkpoint")
    whole, thinned = (heldout_questions(heldout, count, generator) for count in (150, 40))
    rows = np.linspace(0, 149, 40).round().astype(int)
    assert np.array_equal(thinned.grids.coarse, whole.grids.coarse[rows])
    for name in ("hidden", "plan_noise"):
        assert np.array_equal(getattr(thinned, name), getattr(whole, name)[rows]), name
    assert thinned.groups == [row // 3 for row in rows]
    assert thinned.samples_digest != whole.samples_digest and thinned.masks_digest != whole.masks_digest
    masks = np.concatenate([batch.numpy() for batch in fixed_masks(150, 16)], axis=1)
    assert np.array_equal(whole.hidden, masks.transpose(1, 0, 2)) and whole.hidden.any(2).all()


def test_shards_of_other_tokenizers_are_refused(inputs, tmp_path):
    shards = shutil.copytree(inputs / "shards", tmp_path / "shards")
    write_json(shards / "shards.json", {**read_json(shards / "shards.json"), "tokenizers_digest": "other"})
    with pytest.raises(DigestMismatchError, match="other tokenizers"):
        calibrate(SETTINGS, inputs / "checkpoint", shards, tmp_path / "engine")


@pytest.mark.parametrize("name", ["train.bin", "heldout.bin"])
def test_fault_04_shards_that_changed_since_they_were_written_are_refused(inputs, tmp_path, name):
    shards = shutil.copytree(inputs / "shards", tmp_path / "shards")
    content = bytearray((shards / name).read_bytes())
    content[10] ^= 1
    (shards / name).write_bytes(content)
    with pytest.raises(DigestMismatchError, match=rf"{name}: changed"):
        calibrate(SETTINGS, inputs / "checkpoint", shards, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_fault_13_a_layer_that_cannot_be_quantized_is_named_and_nothing_is_left(inputs, tmp_path):
    generator = load_checkpoint(inputs / "checkpoint")
    with torch.no_grad():
        generator.decoder_blocks()[1].mlp_norm.weight.fill_(float("nan"))
    save_checkpoint(tmp_path / "checkpoint", generator, inputs / "tokenizers", {})
    with pytest.raises(QuantizationError, match=r"blocks\.1\.mlp\.gate_up_proj"):
        calibrate(SETTINGS, tmp_path / "checkpoint", inputs / "shards", tmp_path / "engine")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_fault_13_heldout_data_far_beyond_a_calibrated_range_is_refused_in_any_graph(inputs, engine):
    fp32 = engine[0] / "fp32"
    prompts = [Shards(inputs / "shards", "train").batch([0, 1, 2]).text_ids]
    feeds = observe(load_checkpoint(inputs / "checkpoint"), prompts, DecodingOptions(coarse_steps=2), 0).feeds
    graphs = {name: quantizable_layers(onnx.load(fp32 / f"{name}.onnx"), heads=True) for name in feeds}
    ranges = {name: input_ranges(fp32 / f"{name}.onnx", feeds[name], layers) for name, layers in graphs.items()}
    assert ranges.keys() == {"prefill", "coarse", "fine", "image_decoder"} and all(ranges.values())
    check_engine_coverage(SETTINGS, fp32, ranges, feeds)
    for graph, found in ranges.items():
        layer = list(found)[-1]
        narrow = ranges | {graph: found | {layer: found[layer] / 3}}
        with pytest.raises(QuantizationError, match=r"held-out data reaches 3\.00 times") as refused:
            check_engine_coverage(SETTINGS, fp32, narrow, feeds)
        assert refused.value.where == layer


def test_fault_13_layers_that_cost_too_much_stay_in_full_precision(inputs, engine, tmp_path):
    """The bound lies below what all layers together cost and above what the cheapest ones do."""
    whole = engine[1].output_error["coarse"]
    bound = SETTINGS.model_copy(update={"largest_output_error": 0.8 * whole})
    result = calibrate(bound, inputs / "checkpoint", inputs / "shards", tmp_path / "engine")
    written = read_json(tmp_path / "engine" / "calibration.json")
    put_back = written["full_precision"]["coarse"]
    assert 0 < len(put_back) == result.full_precision_layers["coarse"]
    assert result.output_error["coarse"] <= 0.8 * whole
    # The costliest come first, and only as many as it takes.
    assert [layer["alone"] for layer in put_back] == sorted((layer["alone"] for layer in put_back), reverse=True)
    assert all(layer["output"] > 0.8 * whole for layer in put_back[:-1])
    quantized = set(written["fidelity"]["coarse"]["layers"])
    assert quantized and quantized.isdisjoint(layer["layer"] for layer in put_back)
    nodes = {node.name: node for node in onnx.load(tmp_path / "engine" / "int8" / "coarse.onnx").graph.node}
    made_by = {output: node.op_type for node in nodes.values() for output in node.output}
    for layer in [*quantized, *(layer["layer"] for layer in put_back)]:
        assert (made_by.get(nodes[layer].input[1]) == "DequantizeLinear") == (layer in quantized)


def test_fault_13_a_graph_that_no_layer_may_be_int8_in_is_refused(inputs, tmp_path):
    strict = SETTINGS.model_copy(update={"largest_output_error": 1e-7})
    with pytest.raises(QuantizationError, match=r"prefill: no layer can be INT8 .* the costliest is blocks\."):
        calibrate(strict, inputs / "checkpoint", inputs / "shards", tmp_path / "engine")
    assert not (tmp_path / "engine").exists()

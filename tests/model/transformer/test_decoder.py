"""The plain decoder against the reference implementation, its cache, its presets, and checkpoints that do not fit."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from typer.testing import CliRunner

from common.errors import DataError, SettingsError, UntrustedFileError, UsageError
from model.transformer.config import DecoderConfig
from model.transformer.decoder import Decoder
from model.transformer.huggingface import import_checkpoint, load_decoder
from model.transformer.layers import RMSNorm
from model.transformer.presets import EMU35_VOCABULARY, PRESETS
from model.transformer.rope import rotate, rotation
from pipelines.cli import app

SHAPE = {
    "vocab_size": 211, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6, "rms_norm_eps": 1e-6, "max_position_embeddings": 64,
}  # fmt: skip
IDS = torch.randint(211, (2, 40), generator=torch.Generator().manual_seed(3))


def reference(folder: Path, **changes) -> Qwen3ForCausalLM:
    """transformers' own Qwen3 with random weights, saved in several shards."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**{**SHAPE, "tie_word_embeddings": False, **changes})).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))  # norms of ones would hide a swapped pair
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


@pytest.mark.parametrize("tied", [False, True])
def test_an_imported_checkpoint_gives_the_logits_of_the_reference(tmp_path, tied):
    model = reference(tmp_path / "theirs", tie_word_embeddings=tied)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 2
    made = import_checkpoint(tmp_path / "theirs", tmp_path / "ours", shard_bytes=50_000)
    assert made.shards > 2 and made.config.tie_word_embeddings is tied
    ours = load_decoder(tmp_path / "ours")
    with torch.inference_mode():
        torch.testing.assert_close(ours(IDS)[0], model(IDS).logits, atol=1e-4, rtol=0)
    assert made.config.parameter_count == sum(weight.numel() for weight in ours.parameters())


def test_in_bf16_norms_are_those_of_the_reference_and_so_are_the_logits(tmp_path, monkeypatch):
    model = reference(tmp_path / "fp32").bfloat16()
    model.save_pretrained(tmp_path / "theirs")
    import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    ours = load_decoder(tmp_path / "ours")
    assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}
    with torch.inference_mode():
        theirs, found = model(IDS).logits.float(), ours(IDS)[0].float()
    torch.testing.assert_close(
        found, theirs, atol=2**-7, rtol=0
    )  # logits up to .54, of which bf16 knows every 2 ** -9th
    monkeypatch.setattr(RMSNorm, "forward", lambda norm, x: in_own_type(x, norm))
    with torch.inference_mode():
        rounded = ours(IDS)[0].float()
    assert (found - theirs).square().mean() < 0.8 * (rounded - theirs).square().mean()


def in_own_type(x: torch.Tensor, norm: RMSNorm) -> torch.Tensor:
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + norm.eps) * norm.weight


def test_a_norm_in_16_bits_is_the_references_to_the_bit_and_one_in_32_is_as_it_was():
    random = torch.Generator().manual_seed(0)
    x, weight = 5 * torch.randn(4, 30, 48, generator=random), 1 + torch.randn(48, generator=random)
    theirs, ours = Qwen3RMSNorm(48, 1e-6), RMSNorm(48, 1e-6).eval()
    with torch.no_grad():
        theirs.weight.copy_(weight)
        ours.weight.copy_(weight)
        assert torch.equal(ours(x), in_own_type(x, ours))
        for dtype in (torch.bfloat16, torch.float16):
            theirs, ours, narrow = theirs.to(dtype), ours.to(dtype), x.to(dtype)
            assert torch.equal(ours(narrow), theirs(narrow))
            assert not torch.equal(in_own_type(narrow, ours), theirs(narrow))


def test_the_cache_changes_no_logit():
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(**SHAPE)).eval()
    with torch.inference_mode():
        whole, present = model(IDS)
        assert present.shape == (3, 2, 2, 2, 40, 16)
        first, past = model(IDS[:, :7])
        several, past = model(IDS[:, 7:20], past)
        steps = [first, several]
        for position in range(20, 40):
            logits, past = model(IDS[:, position : position + 1], past)
            steps.append(logits)
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(past, present, atol=1e-5, rtol=1e-4)


def test_a_token_sees_none_that_follow_it():
    torch.manual_seed(1)
    model = Decoder(DecoderConfig(**SHAPE)).eval()
    changed = IDS.clone()
    changed[:, 25:] = (changed[:, 25:] + 1) % 211
    with torch.inference_mode():
        before, after = model(IDS)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :25], after[:, :25])
    assert not torch.allclose(before[:, 25:], after[:, 25:])


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(UsageError, match="65 tokens, more than max_position_embeddings 64"):
        Decoder(DecoderConfig(**SHAPE))(torch.zeros(1, 65, dtype=torch.long))


@pytest.mark.parametrize("shape", [(1, 0), (0, 5)])
def test_no_token_at_all_is_refused(shape):
    decoder = Decoder(DecoderConfig(**SHAPE))
    for past in (None, torch.zeros(3, 2, shape[0], 2, 4, 16)):
        with pytest.raises(UsageError, match=re.escape(f"ids are {list(shape)}: no token")):
            decoder(torch.zeros(shape, dtype=torch.long), past)


def test_scores_of_rotated_heads_depend_on_the_distance_alone():
    torch.manual_seed(2)
    query, key = torch.randn(1, 16), torch.randn(1, 16)

    def score(at: int, other: int) -> torch.Tensor:
        turned = [rotate(x, rotation(torch.tensor([p]), 16, 1e4)) for x, p in ((query, at), (key, other))]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(score(9, 4), score(1005, 1000), atol=1e-3, rtol=1e-3)
    assert not torch.isclose(score(9, 4), score(9, 5), atol=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_the_parameters_that_its_formula_says(name):
    with torch.device("meta"):
        model = Decoder(PRESETS[name])
    assert sum(weight.numel() for weight in model.parameters()) == PRESETS[name].parameter_count


def test_the_largest_preset_is_emu35():
    shape = PRESETS["emu3.5-34b"]
    assert abs(shape.parameter_count / 34.1e9 - 1) < 0.01
    assert (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size) == (64, 5120, 25600)
    assert (shape.num_attention_heads, shape.num_key_value_heads, shape.vocab_size) == (64, 8, EMU35_VOCABULARY)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole checkpoint of one file that a test may damage."""
    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=False)).save_pretrained(tmp_path / "theirs")
    return tmp_path / "theirs"


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, name: str, weight: torch.Tensor | None) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop(name, None)
    save_file(weights | ({name: weight} if weight is not None else {}), folder / "model.safetensors")


NORM = "model.layers.1.self_attn.q_norm.weight"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: change_config(f, hidden_act="gelu"), "hidden_act is 'gelu'"),
        (lambda f: change_config(f, attention_bias=True), "attention_bias is True"),
        (lambda f: change_config(f, rope_parameters={"rope_type": "yarn"}), "rope_type is 'yarn'"),
        (lambda f: change_config(f, intermediate_size=81), r"mlp.gate_proj.weight is \[80, 48\].*\[81, 48\]"),
        (lambda f: change_config(f, num_hidden_layers=2), "model.layers.2.*left over"),
        (lambda f: change_config(f, num_hidden_layers=4), "model.layers.3.*missing"),
        (lambda f: change_weights(f, NORM, None), f"{NORM} is missing"),
        (lambda f: change_weights(f, NORM, torch.ones(8)), rf"{NORM} is \[8\]"),
        (lambda f: change_weights(f, "model.extra.weight", torch.ones(8)), "model.extra.weight is left over"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights"),
        (lambda f: (f / "config.json").write_text('{"hidden_size": 48'), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff{}"), "config.json: not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "config.json: holds list, not a JSON object"),
        (lambda f: change_config(f, rope_parameters="yarn"), "rope_parameters is 'yarn', not an object"),
        (lambda f: change_config(f, rope_parameters={"full_attention": {"rope_theta": 1e6}}), "rope_theta is missing"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name_and_leaves_nothing(folder, damage, words):
    damage(folder)
    with pytest.raises(DataError, match=words):
        import_checkpoint(folder, folder.parent / "ours")
    assert [path.name for path in folder.parent.iterdir()] == ["theirs"]


def shards(folder: Path) -> list[Path]:
    """The files of `reference`."""
    reference(folder)
    return sorted(folder.glob("*.safetensors"))


def test_what_a_shard_holds_beyond_its_index_is_refused_by_name(tmp_path):
    first, second, *_ = shards(tmp_path / "theirs")
    weights = load_file(first)
    save_file(weights | {"model.extra.weight": torch.ones(8)}, first)
    with pytest.raises(DataError, match=f"{first.name}: tensor model.extra.weight is left over"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    save_file(weights, first)
    name, weight = next(iter(load_file(second).items()))
    save_file(weights | {name: weight + 1}, first)  # another one of that name: which of them is meant?
    with pytest.raises(DataError, match=f"{first.name}: tensor {name} is left over"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    save_file({key: weights[key] for key in list(weights)[1:]}, first)
    with pytest.raises(DataError, match=f"tensor {next(iter(weights))} is missing"):
        import_checkpoint(tmp_path / "theirs", tmp_path / "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    save_file(weights, first)
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours").shards == 1


def test_the_shared_matrix_may_stand_in_a_shard_a_second_time(tmp_path):
    model = reference(tmp_path / "theirs", tie_word_embeddings=True)
    *_, last = sorted((tmp_path / "theirs").glob("*.safetensors"))
    save_file(load_file(last) | {"lm_head.weight": model.lm_head.weight.detach().clone()}, last)
    assert import_checkpoint(tmp_path / "theirs", tmp_path / "ours").config.tie_word_embeddings


@pytest.mark.parametrize(
    ("name", "value"), [("num_attention_heads", 0), ("num_attention_heads", "six"), ("hidden_size", {})]
)
def test_a_size_that_is_none_is_named(folder, name, value):
    change_config(folder, head_dim=None, **{name: value})
    with pytest.raises(SettingsError, match=name):
        import_checkpoint(folder, folder.parent / "ours")


@pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
def test_an_imported_checkpoint_with_a_broken_file_is_refused(folder, name):
    ours = folder.parent / "ours"
    import_checkpoint(folder, ours)
    (ours / name).write_text("{")
    with pytest.raises(DataError, match=f"{name}: not JSON"):
        load_decoder(ours)
    (ours / name).unlink()
    with pytest.raises(DataError, match="no weights" if "index" in name else "no config.json"):
        load_decoder(ours)


def test_a_configuration_without_a_size_names_it(folder):
    path = folder / "config.json"
    content = json.loads(path.read_text())
    del content["num_attention_heads"]
    path.write_text(json.dumps(content))
    with pytest.raises(SettingsError, match="num_attention_heads"):
        import_checkpoint(folder, folder.parent / "ours")


def test_fault_06_pickles_and_files_elsewhere_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UntrustedFileError, match=r"pytorch_model\.bin"):
        import_checkpoint(folder, folder.parent / "ours")
    weights.write_bytes(b"\x80\x04pickle")
    with pytest.raises(UntrustedFileError, match="not a safetensors file"):
        import_checkpoint(folder, folder.parent / "ours")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(UntrustedFileError, match="elsewhere"):
        import_checkpoint(folder, folder.parent / "ours")


def test_the_command_imports_with_the_tokenizers_files_and_refuses_a_taken_name(folder):
    (folder / "tokenizer.json").write_text("{}")
    output = folder.parent / "ours"
    done = CliRunner().invoke(app, ["import", str(folder), "-o", str(output)])
    assert done.exit_code == 0 and "3 layers of 48" in done.output, done.output
    assert (output / "tokenizers" / "tokenizer.json").read_text() == "{}"
    again = CliRunner().invoke(app, ["import", str(folder), "-o", str(output)])
    assert again.exit_code != 0
    shutil.rmtree(output)
    assert CliRunner().invoke(app, ["import", str(folder / "nowhere"), "-o", str(output)]).exit_code != 0

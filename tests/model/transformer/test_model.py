"""The transformer's two forms agree, and information flows only where it may."""

import json

import pytest
import torch

from common.errors import DataError, SettingsError, UntrustedFileError
from model.checkpoint import load_checkpoint, save_checkpoint, save_tensors
from model.transformer.config import GeneratorConfig
from model.transformer.embeddings import code_levels
from model.transformer.huggingface import load_decoder, read_shape
from model.transformer.model import Generator
from model.transformer.story_config import StoryConfig

CONFIG = GeneratorConfig(
    hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
)


@pytest.fixture
def model() -> Generator:
    torch.manual_seed(0)
    return Generator(CONFIG).eval()


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randint(512, (2, 16), generator=generator)
    coarse = torch.randint(240, (2, 64), generator=generator)
    return text, coarse, torch.randint(241, (2, 64, 4), generator=generator)


def test_cached_and_joint_passes_agree(model, inputs):
    text, coarse, fine = inputs
    past, read = model.prefill(text)
    assert past.shape == (3, 2, 2, 2, 16, 8)
    values = model.plan.encode(coarse, [fine % 240])
    plan = model.plan.codes(values)
    logits, last = model.train_coarse(text, coarse, values)
    torch.testing.assert_close(model.coarse_logits(past, coarse, plan), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(read, last, atol=1e-5, rtol=1e-5)
    for codes, as_values in ((plan, values), (None, None)):
        details = model.fine_logits(past, coarse, fine, codes)
        torch.testing.assert_close(details, model.train_fine(text, coarse, fine, as_values), atol=1e-5, rtol=1e-5)


def test_a_further_stage_of_details_reads_the_grid_before_it(inputs):
    text, coarse, fine = inputs
    torch.manual_seed(0)
    model = Generator(CONFIG.model_copy(update={"coarse_grid": (4, 4), "detail_stages": 2})).eval()
    values = model.plan.encode(coarse[:, :16], [fine[:, :16] % 240, fine % 240])
    plan, (past, _) = model.plan.codes(values), model.prefill(text)
    details = model.fine_logits(past, coarse, fine, plan, stage=2)
    assert details.shape == (2, 64, 4, 240)
    torch.testing.assert_close(details, model.train_fine(text, coarse, fine, values, 2), atol=1e-5, rtol=1e-5)
    changed = coarse.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 240
    moved = (model.fine_logits(past, changed, fine, plan, stage=2) - details).abs().amax((0, 2, 3))
    far = [row * 8 + column for row in range(5, 8) for column in range(5, 8)]  # two blocks, two cells to each side
    assert moved[0] > 0 and moved[far].max() == 0


def test_one_token_after_another_agrees_with_and_without_a_cache(model, inputs):
    text, coarse, _ = inputs
    together = model.train_next(text, coarse)
    past, _ = model.prefill(text)
    previous = torch.full((2, 1), 240)
    for cell in range(12):
        logits, past = model.next_logits(past, previous, torch.tensor([cell]))
        torch.testing.assert_close(logits, together[:, cell], atol=1e-5, rtol=1e-5)
        previous = coarse[:, cell : cell + 1]
    known = torch.cat([torch.full((2, 1), 240), coarse[:, :11]], 1)
    torch.testing.assert_close(model.sequence_logits(text, known)[:, -1], together[:, 11], atol=1e-5, rtol=1e-5)


def test_a_next_token_sees_nothing_that_comes_later(model, inputs):
    text, coarse, _ = inputs
    changed = coarse.clone()
    changed[:, 20] = (changed[:, 20] + 1) % 240
    before, after = model.train_next(text, coarse), model.train_next(text, changed)
    assert torch.equal(before[:, :21], after[:, :21])
    assert not torch.equal(before[:, 21:], after[:, 21:])


def test_without_details_or_plan_the_sketch_is_the_whole_image(inputs):
    text, coarse, _ = inputs
    model = Generator(CONFIG.model_copy(update={"fine_layers": 0, "plan_tokens": 0})).eval()
    assert not [name for name in model.state_dict() if "fine" in name or "plan" in name or "sketch" in name]
    past, _ = model.prefill(text)
    torch.testing.assert_close(
        model.coarse_logits(past, coarse), model.train_coarse(text, coarse)[0], atol=1e-5, rtol=1e-5
    )


def test_training_and_evaluation_norms_agree(model, inputs):
    text, coarse, _ = inputs
    evaluated = model.train_next(text, coarse)
    torch.testing.assert_close(model.train().train_next(text, coarse), evaluated, atol=1e-5, rtol=1e-5)


def test_the_prompt_is_causal(model, inputs):
    text, *_ = inputs
    changed = text.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 512
    before, after = model.prefill(text).past, model.prefill(changed).past
    assert torch.equal(before[..., :10, :], after[..., :10, :])
    assert not torch.equal(before[..., 10:, :], after[..., 10:, :])


def test_a_detail_sees_only_its_neighbourhood(inputs):
    text, coarse, fine = inputs
    torch.manual_seed(0)
    model = Generator(CONFIG.model_copy(update={"fine_layers": 1})).eval()
    past, changed = model.prefill(text).past, fine.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 240
    difference = (
        (model.fine_logits(past, coarse, fine) - model.fine_logits(past, coarse, changed)).abs().amax((0, 2, 3))
    )
    near = [row * 8 + column for row in range(3) for column in range(3)]
    assert (difference[near] > 0).all()
    assert difference[[cell for cell in range(64) if cell not in near]].max() == 0


def test_level_rows_are_unique_and_in_range():
    rows = code_levels((8, 6, 5))
    assert len(rows.unique(dim=0)) == 240
    assert rows.amin(0).tolist() == [0, 8, 14]
    assert rows.amax(0).tolist() == [7, 13, 18]


def test_checkpoint_round_trip(model, inputs, tmp_path):
    text, coarse, _ = inputs
    (tmp_path / "tokenizers").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, tmp_path / "tokenizers", {"steps": 1})
    loaded = load_checkpoint(tmp_path / "checkpoint")
    assert loaded.config == CONFIG
    assert torch.equal(loaded.train_next(text, coarse), model.train_next(text, coarse))


def test_fault_06_a_pickle_where_weights_are_expected_is_refused(model, tmp_path):
    (tmp_path / "tokenizers").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, tmp_path / "tokenizers", {})
    weights = tmp_path / "checkpoint" / "model.safetensors"
    torch.save(model.state_dict(), weights)
    with pytest.raises(UntrustedFileError, match="safetensors"):
        load_checkpoint(tmp_path / "checkpoint")
    weights.rename(weights.with_suffix(".pt"))
    with pytest.raises(UntrustedFileError, match="pickled"):
        load_checkpoint(tmp_path / "checkpoint")


def test_an_impossible_shape_is_refused():
    with pytest.raises(SettingsError, match="num_attention_heads"):
        GeneratorConfig.parse({"hidden_size": 30, "num_attention_heads": 4})
    with pytest.raises(SettingsError, match="did you mean 'hidden_size'"):
        GeneratorConfig.parse({"hiden_size": 32})


@pytest.mark.parametrize("grid", [(0, 8), (8, -1)])
@pytest.mark.parametrize(("shape", "rest"), [(GeneratorConfig, {}), (StoryConfig, {"text_vocabulary": 512})])
def test_a_grid_without_cells_is_refused(shape, rest, grid):
    with pytest.raises(SettingsError, match=r"coarse_grid\.[01]'.*greater than 0"):
        shape.parse({"coarse_grid": grid, **rest})


@pytest.mark.parametrize(
    ("levels", "words"),
    [([8, -6, 5], r"visual_levels\.1'.*2"), ([8, 6, 1], r"visual_levels\.2'.*2"), ([], "visual_levels'.*at least 1")],
)
@pytest.mark.parametrize(("shape", "rest"), [(GeneratorConfig, {}), (StoryConfig, {"text_vocabulary": 512})])
def test_levels_that_no_tokenizer_has_are_refused(shape, rest, levels, words):
    with pytest.raises(SettingsError, match=words):
        shape.parse({"visual_levels": levels, **rest})


def test_a_checkpoint_names_the_levels_that_it_cannot_have(model, tmp_path):
    (tmp_path / "tokenizers").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, tmp_path / "tokenizers", {})
    config = tmp_path / "checkpoint" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"visual_levels": [8, -6, 5]}))
    with pytest.raises(SettingsError, match=r"config\.json: 'visual_levels\.1'"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no config.json"),
        (b'{"hidden_size": 32', "config.json: not JSON"),
        (b"\x80\x04", "config.json: not JSON"),
        (b"[32]", "config.json: holds list, not a JSON object"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_named(tmp_path, content, words):
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    for load in (load_checkpoint, load_decoder, read_shape):
        with pytest.raises(DataError, match=words):
            load(tmp_path)


def spoil_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["norm.weight"] = torch.ones(33)


def spoil_missing(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["blocks.1.mlp.down_proj.weight"]


def spoil_extra(tensors: dict[str, torch.Tensor]) -> None:
    tensors["blocks.7.norm.weight"] = torch.ones(32)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_shape, r"norm\.weight.*\[33\].*\[32\]"),
        (spoil_missing, r"Missing.*blocks\.1\.mlp\.down_proj\.weight"),
        (spoil_extra, r"Unexpected.*blocks\.7\.norm\.weight"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_named(model, tmp_path, spoil, named):
    (tmp_path / "tokenizers").mkdir()
    save_checkpoint(tmp_path / "checkpoint", model, tmp_path / "tokenizers", {})
    tensors = dict(model.state_dict())
    spoil(tensors)
    save_tensors(tmp_path / "checkpoint" / "model.safetensors", tensors)
    with pytest.raises(DataError, match=rf"(?s){named}"):
        load_checkpoint(tmp_path / "checkpoint")


def test_an_odd_head_is_refused_where_positions_are_rotary():
    sizes = {"hidden_size": 120, "num_attention_heads": 8, "num_key_value_heads": 8}
    with pytest.raises(ValueError, match=r"hidden_size 120 over num_attention_heads 8 is 15: rotary"):
        GeneratorConfig(**sizes)
    assert GeneratorConfig(**sizes, rope_theta=0).head_dim == 15

"""The kept checkpoints are what their index says, and fit what is claimed of them."""

import shutil
from pathlib import Path

import pytest

from benchmarks import checkpoints
from benchmarks.checkpoints import RECIPES, STORE
from benchmarks.decode_rows import ENGINES
from common.errors import DigestMismatchError, UsageError
from common.files import read_json, write_json
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer

_MIB = 2**20


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_checkpoint(name):
    kept = checkpoints.describe(name)
    assert kept["bytes"] == (STORE / name / "model.safetensors").stat().st_size < (8 if name == "large" else 4) * _MIB
    assert kept["steps"] == RECIPES[name].steps and kept["command"].endswith(f"--only {name}")
    generator = checkpoints.load(name)
    assert sum(parameter.numel() for parameter in generator.parameters()) == kept["parameters"]
    grids = generator.config.grids
    assert grids[-1] == (16, 16) and len(grids) == 1 + RECIPES[name].detail_stages


def test_no_baseline_has_more_parameters_than_ours():
    ours = checkpoints.describe("progressive")["parameters"]
    assert all(checkpoints.describe(name)["parameters"] <= ours for name, _ in ENGINES.values())


def test_all_were_trained_with_the_kept_tokenizers(tmp_path):
    digest = checkpoints.load_tokenizers().digest
    assert {checkpoints.describe(name)["tokenizers_digest"] for name in RECIPES} == {digest}
    store = shutil.copytree(STORE, tmp_path / "weights")
    index = read_json(store / "index.json")
    index["checkpoints"]["raster"]["tokenizers_digest"] = "0" * 64
    write_json(store / "index.json", index)
    with pytest.raises(DigestMismatchError, match="other tokenizers"):
        checkpoints.load("raster", store)


def test_one_altered_byte_is_noticed(tmp_path):
    store = shutil.copytree(STORE, tmp_path / "weights")
    weights = store / "raster" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DigestMismatchError, match="not those that were kept"):
        checkpoints.load("raster", store)
    assert checkpoints.load("progressive", store).config.fine_layers == 2


def test_a_checkpoint_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint rasta"):
        checkpoints.retrain(tmp_path, tmp_path, ["rasta"])


def make_data(folder: Path, parent_tokenizers: Path | None = None) -> None:
    """In place of the pipeline's steps. New tokenizers are others each time, as they are on another machine."""
    (folder / "shards").mkdir(parents=True)
    if parent_tokenizers is not None:
        shutil.copytree(parent_tokenizers, folder / "tokenizers")
    else:
        visual = VisualTokenizer(VisualTokenizerConfig(width=8))
        save_tokenizers(folder / "tokenizers", TextTokenizer.train(["a red seven"], 300), visual)


@pytest.fixture
def trained(monkeypatch) -> list[str]:
    """The checkpoints that were trained, in no time: what comes of it are the kept weights, with the record of a training on
    the tokenizers that were given."""
    names = []

    def train(name: str, shards: Path, tokenizers: Path, work: Path, store: Path) -> None:
        names.append(name)
        shutil.copytree(STORE / name, work / name)
        digest = TokenizerBundle.load(tokenizers).digest
        write_json(work / name / "training.json", checkpoints.describe(name) | {"tokenizers_digest": digest})

    monkeypatch.setattr(checkpoints, "make_data", make_data)
    monkeypatch.setattr(checkpoints, "_train", train)
    return names


@pytest.mark.parametrize("only", [None, ["raster", "large"]])
def test_what_was_retrained_goes_with_the_kept_tokenizers(tmp_path, trained, only):
    store = shutil.copytree(STORE, tmp_path / "weights")
    checkpoints.retrain(tmp_path / "work", store, only)
    assert trained == (only or list(RECIPES))
    assert checkpoints.load_tokenizers(store).digest == checkpoints.load_tokenizers().digest
    for name in RECIPES:
        checkpoints.load(name, store)


def test_where_no_tokenizers_are_kept_all_are_made_for_new_ones(tmp_path, trained):
    store = shutil.copytree(STORE, tmp_path / "weights")
    shutil.rmtree(store / "tokenizers")
    checkpoints.retrain(tmp_path / "work", store)
    digest = checkpoints.load_tokenizers(store).digest
    assert digest != checkpoints.load_tokenizers().digest
    for name in RECIPES:
        checkpoints.load(name, store)
        assert checkpoints.describe(name, store)["tokenizers_digest"] == digest


def test_data_of_other_tokenizers_is_refused_before_anything_is_trained(tmp_path, trained):
    store = shutil.copytree(STORE, tmp_path / "weights")
    index = (store / "index.json").read_bytes()
    make_data(tmp_path / "work" / "data")
    with pytest.raises(DigestMismatchError, match=f"kept are {checkpoints.load_tokenizers().digest[:12]}"):
        checkpoints.retrain(tmp_path / "work", store)
    assert not trained and (store / "index.json").read_bytes() == index

"""The kept checkpoints are what their index says, and fit what is claimed of them."""

import shutil

import pytest

from benchmarks import checkpoints
from benchmarks.checkpoints import RECIPES, STORE
from benchmarks.decode_rows import ENGINES
from common.errors import DigestMismatchError, UsageError
from common.files import read_json, write_json

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

"""A next-token checkpoint becomes a parallel one, with real DeepSpeed ranks on a tiny model."""

import shutil
from pathlib import Path

import pytest
import torch

from common.errors import DataError
from common.files import read_json
from components.adapt.adapt import adapt, cost_share
from components.adapt.settings import AdaptationSettings
from components.train.settings import TrainingSettings
from components.train.train import train
from model.checkpoint import load_checkpoint
from tests.components.patterns import MODEL, write_patterns

COMMON = {"global_batch_size": 8, "precision": "fp32", "log_every_steps": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    return write_patterns(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def next_token(data, tmp_path_factory) -> Path:
    tokenizers, shards = data
    folder = tmp_path_factory.mktemp("next-token")
    settings = TrainingSettings.model_validate({"objective": "next_token", "steps": 60, **COMMON})
    train(settings, MODEL, shards, tokenizers, None, folder / "work", folder / "checkpoint")
    return folder / "checkpoint"


def test_few_steps_make_a_next_token_checkpoint_predict_in_parallel(data, next_token, tmp_path):
    tokenizers, shards = data
    settings = AdaptationSettings.model_validate({"steps": 30, "warmup_steps": 2, **COMMON})
    result = adapt(settings, next_token, shards, tokenizers, tmp_path / "work", tmp_path / "checkpoint")
    assert (result.steps, result.cost_share) == (30, 0.5)
    assert result.heldout_loss < 0.9 * result.heldout_loss_before
    adapted = read_json(tmp_path / "checkpoint" / "training.json")
    assert adapted["objective"] == "parallel" and adapted["heldout_loss"] == result.heldout_loss
    before, after = (load_checkpoint(folder).state_dict() for folder in (next_token, tmp_path / "checkpoint"))
    assert before.keys() == after.keys()
    moved = [name for name, weights in before.items() if not torch.equal(weights, after[name])]
    assert "blocks.0.attention.qkv_proj.weight" in moved


def test_the_cost_is_counted_in_images_not_in_steps_of_other_batches():
    training = {"steps": 60, "global_batch_size": 8}
    assert cost_share({"steps": 3, "global_batch_size": 4}, training) == 3 * 4 / (60 * 8)
    assert cost_share({"steps": 3, "global_batch_size": 8}, {"steps": 60}) is None, "an earlier version's"


@pytest.mark.parametrize(("name", "words"), [("training.json", "no training.json"), ("config.json", "no config.json")])
def test_a_checkpoint_without_its_description_is_refused(data, next_token, tmp_path, name, words):
    tokenizers, shards = data
    broken = shutil.copytree(next_token, tmp_path / "broken")
    (broken / name).unlink()
    with pytest.raises(DataError, match=words):
        adapt(AdaptationSettings(), broken, shards, tokenizers, tmp_path / "work", tmp_path / "checkpoint")


def test_a_parallel_checkpoint_is_not_adapted_again(data, next_token, tmp_path):
    tokenizers, shards = data
    settings = AdaptationSettings.model_validate({"steps": 2, "warmup_steps": 1, **COMMON, "global_batch_size": 4})
    result = adapt(settings, next_token, shards, tokenizers, tmp_path / "work", tmp_path / "checkpoint")
    assert (result.steps, result.cost_share) == (2, 2 * 4 / (60 * 8))
    with pytest.raises(DataError, match="predicts in parallel already"):
        adapt(settings, tmp_path / "checkpoint", shards, tokenizers, tmp_path / "again", tmp_path / "other")
    assert not (tmp_path / "other").exists()

"""The training step with real DeepSpeed ranks on a tiny model."""

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from common.errors import DataError, DigestMismatchError, TrainingError, UsageError
from common.files import read_json
from components.train.settings import TrainingSettings
from components.train.train import generator_config, train
from model.checkpoint import load_checkpoint
from model.data.grids import read_grids
from model.data.shards import RecordLayout, Shards, ShardWriter, write_manifest
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from tests.components.patterns import MODEL, write_patterns


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, Path]:
    return write_patterns(tmp_path_factory.mktemp("data"))


def settings(**changes) -> TrainingSettings:
    base = {"steps": 40, "global_batch_size": 8, "precision": "fp32", "checkpoint_every_steps": 5, "log_every_steps": 1}
    return TrainingSettings.model_validate(base | changes)


def curve(checkpoint: Path) -> dict[int, float]:
    points = [json.loads(line) for line in (checkpoint / "curves.jsonl").read_text().splitlines()]
    return {point["step"]: point["coarse_loss"] for point in points}


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory) -> Path:
    tokenizers, shards = data
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(settings(), MODEL, shards, tokenizers, None, folder / "work", folder / "checkpoint")
    return folder / "checkpoint"


def test_two_ranks_learn_and_leave_a_checkpoint(data, uninterrupted):
    losses = curve(uninterrupted)
    assert sorted(losses) == list(range(1, 41))
    assert losses[40] < 0.8 * losses[1]
    training = read_json(uninterrupted / "training.json")
    assert (training["ranks"], training["unconditional_share"]) == (2, 0.0)
    assert len(training["heldout_loss_per_sample"]) == 8
    assert training["heldout_loss"] < np.log(240)
    model = load_checkpoint(uninterrupted)
    assert model.config.text_vocabulary == TokenizerBundle.load(data[0]).text.vocabulary
    assert TokenizerBundle.load(uninterrupted / "tokenizers").digest == training["tokenizers_digest"]


def test_fault_07_a_killed_rank_resumes_with_the_same_losses(data, uninterrupted, tmp_path):
    tokenizers, shards = data
    work = tmp_path / "work"
    killer = threading.Thread(target=kill_a_rank_once_saved, args=(work,))
    killer.start()
    with pytest.raises(TrainingError, match="rank"):
        train(settings(), MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    killer.join()
    assert not (tmp_path / "checkpoint").exists()

    train(settings(), MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    first_step = read_json(tmp_path / "checkpoint" / "training.json")["first_step"]
    assert first_step >= 5
    assert curve(tmp_path / "checkpoint") == pytest.approx(curve(uninterrupted), rel=1e-6)


def kill_a_rank_once_saved(work: Path) -> None:
    """SIGKILL the last rank of this test's own training when its first state has been written."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(work.glob("state-*")):
            ranks = [child for child in psutil.Process().children(recursive=True) if is_rank_of(child, work)]
            os.kill(ranks[-1].pid, signal.SIGKILL)
            return
        time.sleep(0.005)


def is_rank_of(process: psutil.Process, work: Path) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    return str(work / "job.json") in command and "torch.distributed.run" not in command


def test_a_champion_is_trained_on_with_another_window_but_not_in_another_shape(data, uninterrupted, tmp_path, capfd):
    tokenizers, shards = data
    start = settings(steps=1, initialize_from="parent", learning_rate=1e-6, warmup_steps=0)
    windowed = MODEL.model_copy(update={"sketch_window": 1})
    train(start, windowed, shards, tokenizers, uninterrupted, tmp_path / "work", tmp_path / "checkpoint")
    assert load_checkpoint(tmp_path / "checkpoint").config.sketch_window == 1
    assert curve(tmp_path / "checkpoint")[1] < 0.9 * curve(uninterrupted)[1]
    wider = MODEL.model_copy(update={"intermediate_size": 48})
    with pytest.raises(TrainingError, match="exit code 1"):
        train(start, wider, shards, tokenizers, uninterrupted, tmp_path / "wider", tmp_path / "other")
    assert "the checkpoint to start from has another shape" in capfd.readouterr().err
    assert not (tmp_path / "other").exists()


def test_shards_of_other_tokenizers_are_refused(data, tmp_path):
    _, shards = data
    other = tmp_path / "tokenizers"
    save_tokenizers(other, TextTokenizer.train(["others"], 300), VisualTokenizer(VisualTokenizerConfig(width=8)))
    with pytest.raises(DigestMismatchError, match="other tokenizers"):
        train(settings(), MODEL, shards, other, None, tmp_path / "work", tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["train.bin", "heldout.bin"])
def test_fault_04_shards_that_changed_since_they_were_written_stop_the_training(data, tmp_path, name):
    tokenizers, shards = data[0], shutil.copytree(data[1], tmp_path / "shards")
    content = bytearray((shards / name).read_bytes())
    content[100] ^= 1
    (shards / name).write_bytes(content)
    with pytest.raises(DigestMismatchError, match=rf"{name}: changed"):
        train(settings(), MODEL, shards, tokenizers, None, tmp_path / "work", tmp_path / "checkpoint")
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_batch_that_does_not_divide_is_refused(data, tmp_path):
    tokenizers, shards = data
    with pytest.raises(UsageError, match="not a multiple"):
        train(
            settings(global_batch_size=9), MODEL, shards, tokenizers, None, tmp_path / "work", tmp_path / "checkpoint"
        )


def test_a_grid_that_the_shards_do_not_hold_is_named(data):
    shards = Shards(data[1], "train")
    rows, columns = shards.layout.coarse_grid

    def shape(**changes) -> GeneratorConfig:
        return GeneratorConfig(**MODEL.model_dump() | changes)

    whole = read_grids(shards, [0], shape(coarse_grid=(2 * rows, 2 * columns), fine_layers=0))
    assert whole.coarse.shape == (1, 4 * rows * columns) and not whole.details
    held = f"{rows}x{columns}, {2 * rows}x{2 * columns}"
    with pytest.raises(DataError, match=rf"draws grids of {rows + 1}x{columns}, .* cells; the shards hold {held}\n"):
        read_grids(shards, [0], shape(coarse_grid=(rows + 1, columns)))
    with pytest.raises(DataError, match=rf"draws grids of {held}, {4 * rows}x{4 * columns} cells"):
        read_grids(shards, [0], shape(coarse_grid=(rows, columns), detail_stages=2))


def test_what_the_settings_leave_open_comes_from_the_tokenizers_and_the_shards(data, tmp_path):
    bundle = TokenizerBundle.load(data[0])
    layout = RecordLayout(text_length=5, coarse_grid=(2, 4))
    with ShardWriter(tmp_path, "train", layout) as writer:
        writer.add(["0" * 64], np.zeros((1, 5), int), [np.zeros((1, width), int) for width in (8, 32)])
    write_manifest(tmp_path, layout, {"train": 1}, tokenizers_digest=bundle.digest)
    config = generator_config(MODEL, bundle, Shards(tmp_path, "train"))
    assert (config.text_length, config.coarse_grid, config.hidden_size) == (5, (2, 4), MODEL.hidden_size)
    assert (config.text_vocabulary, config.visual_levels) == (bundle.text.vocabulary, bundle.visual.config.levels)

"""The training step with real DeepSpeed ranks on a tiny model."""

import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError, DigestMismatchError, TrainingError, UsageError
from common.files import read_json
from components.train.train import generator_config, train
from model.checkpoint import load_checkpoint
from model.data.grids import read_grids
from model.data.shards import RecordLayout, Shards, ShardWriter, write_manifest
from model.tokenizers.bundle import TokenizerBundle, save_tokenizers
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.text import TextTokenizer
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from tests.components.patterns import MODEL
from tests.components.train.trainings import curve, ranks_of, settings, wait_for_a_state


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
    killer = threading.Thread(target=signal_a_rank_once_saved, args=(work, signal.SIGKILL))
    killer.start()
    with pytest.raises(TrainingError, match="rank"):
        train(settings(), MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    killer.join()
    assert not (tmp_path / "checkpoint").exists()

    train(settings(), MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    first_step = read_json(tmp_path / "checkpoint" / "training.json")["first_step"]
    assert first_step >= 5
    assert curve(tmp_path / "checkpoint") == pytest.approx(curve(uninterrupted), rel=1e-6)


def test_what_fails_after_the_last_step_costs_no_step(data, uninterrupted, tmp_path):
    tokenizers, shards = data
    work = shutil.copytree(uninterrupted.parent / "work", tmp_path / "work")
    for name in ("final.safetensors", "training.json"):  # the scoring never ended
        (work / name).unlink()
    train(settings(), MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    before, after = (read_json(folder / "training.json") for folder in (uninterrupted, tmp_path / "checkpoint"))
    assert after["first_step"] == 40 and after["heldout_loss"] == pytest.approx(before["heldout_loss"], rel=1e-6)
    assert after["last"]["coarse_loss"] == before["last"]["coarse_loss"]
    assert curve(tmp_path / "checkpoint") == curve(uninterrupted)


def test_a_training_that_ended_early_does_not_go_on_where_what_follows_fails(data, tmp_path):
    tokenizers, shards = data
    diverging = {"optimizer": "adamw", "learning_rate": 0.5, "warmup_steps": 0, "processes": 1}
    changed = settings(**diverging, evaluate_every_steps=1, early_stop_after=1)
    work, checkpoint = tmp_path / "work", tmp_path / "checkpoint"
    train(changed, MODEL, shards, tokenizers, None, work, checkpoint)
    before = curve(checkpoint)
    assert len(before) < 40
    for name in ("final.safetensors", "training.json"):  # the scoring never ended
        (work / name).unlink()
    train(changed, MODEL, shards, tokenizers, None, work, tmp_path / "again")
    training = read_json(tmp_path / "again" / "training.json")
    assert training["first_step"] == training["steps"] == len(before) and curve(tmp_path / "again") == before


def signal_a_rank_once_saved(work: Path, which: signal.Signals) -> None:
    """Send a signal to the last rank of this test's own training when its first state has been written."""
    wait_for_a_state(work)
    ranks_of(work)[-1].send_signal(which)


@pytest.mark.slow  # torchrun waits half a minute before it kills a rank that does not end
def test_fault_12_a_rank_that_hangs_is_named_and_started_again(data, uninterrupted, tmp_path, capfd):
    tokenizers, shards = data
    work = tmp_path / "work"
    stopper = threading.Thread(target=signal_a_rank_once_saved, args=(work, signal.SIGSTOP))
    stopper.start()
    changed = settings(step_timeout_s=8, restarts=1)
    train(changed, MODEL, shards, tokenizers, None, work, tmp_path / "checkpoint")
    stopper.join()
    assert curve(tmp_path / "checkpoint") == pytest.approx(curve(uninterrupted), rel=1e-6)
    told = capfd.readouterr()
    assert "rank 1 has given no sign of life" in told.out + told.err


def test_fault_10_a_training_goes_on_with_other_ranks_in_another_layout(data, tmp_path):
    tokenizers, shards = data
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    same = {"optimizer": "adamw", "learning_rate": 1e-3, "plan_frozen_from": 0, "steps": 12}

    def run(work: Path, checkpoint: Path, **changes) -> dict[int, float]:
        train(settings(**(same | changes)), MODEL, shards, tokenizers, None, work, checkpoint)
        return curve(checkpoint)

    alone = run(whole / "work", whole / "checkpoint", processes=1, parallel={"micro_batch_size": 4})
    killer = threading.Thread(target=signal_a_rank_once_saved, args=(shared / "work", signal.SIGKILL))
    killer.start()
    with pytest.raises(TrainingError, match="a rank ended"):
        run(shared / "work", shared / "checkpoint", parallel={"tensor": 2, "micro_batch_size": 4})
    killer.join()
    resumed = run(shared / "work", shared / "checkpoint", parallel={"micro_batch_size": 4})
    training = read_json(shared / "checkpoint" / "training.json")
    assert training["first_step"] >= 5 and training["layout"] == "tensor 1 x pipeline 1 x data 2"
    assert resumed == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parallel": {"tensor": 2}}, "Muon needs whole matrices"),
        ({"parallel": {"zero": 1}}, "Muon needs whole matrices"),
        ({"optimizer": "adamw", "parallel": {"tensor": 3}, "processes": 3}, "are not a multiple of tensor 3"),
        ({"optimizer": "adamw", "parallel": {"pipeline": 2, "zero": 2}}, "ZeRO-2 does not go with pipeline"),
        ({"parallel": {"micro_batch_size": 3}}, "not a multiple of micro_batch_size 3"),
        ({"parallel": {"micro_batch_size": 1}}, "one image at once"),
        ({"global_batch_size": 2}, "one image at once"),
        ({"global_batch_size": 9}, "not a multiple of data 2"),
    ],
)
def test_a_layout_that_does_not_go_is_refused(changes, told, data, tmp_path):
    with pytest.raises(UsageError, match=told):
        train(settings(**changes), MODEL, data[1], data[0], None, tmp_path / "work", tmp_path / "checkpoint")


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

"""A model whose details come in two stages, from its records to its package."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.files import read_json
from components.calibrate.calibrate import calibrate
from components.calibrate.settings import CalibrationSettings
from components.train.settings import TrainingSettings
from components.train.train import train
from model.checkpoint import load_checkpoint
from model.data.shards import RecordLayout
from model.transformer.session import TorchSession
from serving.package.runtime.generator import Generator
from serving.package.runtime.requests import Request, RequestError
from tests.components.patterns import MODEL, write_patterns
from tests.packages import build

LAYOUT = RecordLayout(text_length=16, coarse_grid=(4, 4), detail_stages=2)
REQUEST = Request("a red seven", seed=3, coarse_steps=1, temperature=0.5, previews=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    tokenizers, shards = write_patterns(folder, LAYOUT)
    settings = TrainingSettings.model_validate(
        {"steps": 60, "global_batch_size": 8, "processes": 1, "precision": "fp32", "log_every_steps": 1}
    )
    train(settings, MODEL, shards, tokenizers, None, folder / "work", folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def package(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packaged")
    settings = CalibrationSettings(prompts=8, measured_prompts=4, batch_size=4)
    calibrate(settings, checkpoint, checkpoint.parent / "shards", folder / "engine")
    return build(folder / "engine", folder / "packages", folder / "keys")


def test_every_stage_learns(checkpoint):
    points = [json.loads(line) for line in (checkpoint / "curves.jsonl").read_text().splitlines()]
    for name in ("coarse_loss", "fine_loss", "fine2_loss"):
        losses = [point[name] for point in points if name in point]
        assert np.mean(losses[-3:]) < 0.85 * losses[0], name
    assert load_checkpoint(checkpoint).config.grids == ((4, 4), (8, 8), (16, 16))


def test_the_package_shows_each_stage_and_draws_the_same_at_once(package):
    generator = Generator(package / "1")
    shown = list(generator.images(REQUEST))
    assert [image.stage for image in shown] == ["coarse", "fine", "final"]
    assert [image.pixels.shape for image in shown] == [(16, 16, 3), (32, 32, 3), (64, 64, 3)]
    assert list(shown[-1].timings_ms) == ["queue", "coarse", "fine", "final"]
    (at_once,) = generator.images(replace(REQUEST, previews=False, coarse_steps=1))
    assert (at_once.pixels == shown[-1].pixels).all()
    graphs = {path.stem for path in (package / "1" / "engine").glob("*.onnx")}
    assert graphs == {"prompt", "plan", "coarse", "fine", "fine2", "image_decoder", "draw"}


def test_each_stage_is_a_size_that_can_be_asked_for(package):
    generator = Generator(package / "1")
    whole = list(generator.images(REQUEST))
    for count, side in enumerate((16, 32, 64)):
        images = list(generator.images(replace(REQUEST, size=(side, side))))
        assert [image.stage for image in images] == [*["coarse", "fine"][:count], "final"]
        assert (images[-1].pixels == whole[count].pixels).all()
    with pytest.raises(RequestError, match="'size' is 128x128, but this model draws 64x64 or 32x32 or 16x16"):
        generator.prepare(replace(REQUEST, size=(128, 128)))


def test_the_graphs_compute_the_checkpoint_and_lose_what_it_loses(checkpoint, package):
    heldout = read_json(package / "1" / "calibration.json")["heldout"]
    expected = read_json(checkpoint / "training.json")["heldout_loss_per_sample"]
    assert heldout["loss_per_sample"]["fp32"] == pytest.approx(expected, abs=1e-3)
    assert (heldout["coarse_grid"], heldout["fine_grid"]) == ([4, 4], [16, 16])
    trained, random = TorchSession(load_checkpoint(checkpoint)), np.random.default_rng(0)
    text_ids, plan = np.ones((2, 16), dtype=np.int64), random.integers(0, 240, (2, 24))
    cells, unknown = random.integers(0, 240, (2, 64)), np.full((2, 64, 4), 240)
    past = trained.prefill(text_ids)[0]
    logits = trained.fine(past, cells, unknown, plan, stage=2)
    assert logits.shape == (2, 64, 4, 240)
    moved = trained.fine(past, (cells + 1) % 240, unknown, plan, stage=2)
    assert np.abs(moved - logits).max() > 0.1  # the stage sees what the one before it drew

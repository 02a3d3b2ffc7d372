"""The judge reads scenes of digits that it never saw, and is trained once for each recipe."""

import shutil

import numpy as np
import pytest

from common.errors import DigestMismatchError
from components.ingest.digit_world import digits, render, scenes
from components.judge.judge import judge
from components.judge.reading import compare, load_judge, read
from components.judge.settings import JudgeSettings
from components.judge.training import JudgeError, recipe_digest, trained_judge
from tests.components.benchmark.conftest import QUICK_JUDGE, write_evaluation_set

SHORT = JudgeSettings(scenes=1500, steps=260, batch=64, width=12, test_scenes=300, min_accuracy=0.0)

TINY = JudgeSettings(scenes=100, steps=1, batch=16, width=4, test_scenes=100, min_accuracy=0.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trained(cache):
    return trained_judge(SHORT, cache)


def real_scenes(count: int, seed: int):
    drawn = scenes.sample_specs(count, seed)
    source = digits.load_split("test")
    images = render.render_scenes(source.images, source.labels, drawn, seed)
    return images, scenes.label_arrays([scene.labels for scene in drawn])


def test_it_reads_unseen_digits_even_after_a_short_training(trained):
    images, expected = real_scenes(300, seed=77)
    seen = compare(read(trained.folder / "judge.onnx", images), expected)
    assert np.mean(seen.position) > 0.98 and np.mean(seen.colour) > 0.98
    assert np.mean(seen.correct) > 0.9
    assert trained.report.accuracy > 0.9


def test_a_wrong_place_colour_or_digit_is_seen_as_that(trained):
    images, expected = real_scenes(200, seed=78)
    blank = np.zeros_like(images)
    assert not any(compare(read(trained.folder / "judge.onnx", blank), expected).position)
    swapped = images[..., [1, 2, 0]]  # red becomes blue: other colours at the same places
    seen = compare(read(trained.folder / "judge.onnx", swapped), expected)
    assert np.mean(seen.position) > 0.95 and np.mean(seen.colour) < 0.3


def test_empty_slots_are_not_compared_by_digit_or_colour():
    expected = np.array([[[7, 0], [-1, -1], [-1, -1], [-1, -1]]])
    extra = np.array([[[7, 0], [3, 1], [-1, -1], [-1, -1]]])
    seen = compare(extra, expected)
    assert (seen.digit, seen.colour, seen.position, seen.correct) == ([True], [True], [False], [False])


def test_only_whole_scenes_are_read(trained):
    with pytest.raises(ValueError, match="uint8"):
        read(trained.folder / "judge.onnx", np.zeros((1, 32, 32, 3), dtype=np.uint8))


def test_the_same_recipe_is_trained_once_and_a_damaged_one_again(tmp_path):
    first = trained_judge(QUICK_JUDGE, tmp_path)
    weights = first.folder / "judge.onnx"
    modified = weights.stat().st_mtime_ns
    assert trained_judge(QUICK_JUDGE, tmp_path).report.digest == first.report.digest
    assert weights.stat().st_mtime_ns == modified
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    again = trained_judge(QUICK_JUDGE, tmp_path)
    assert weights.stat().st_mtime_ns != modified and again.report.digest == first.report.digest


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    cache = tmp_path_factory.mktemp("tiny")
    trained_judge(TINY, cache)
    return cache


@pytest.mark.parametrize("damage", [b'{"digest": "', b"{}", b"\xff\xfe", b"[]"])
def test_a_judge_whose_record_is_damaged_is_trained_again(tiny, tmp_path, damage):
    shutil.copytree(tiny, tmp_path, dirs_exist_ok=True)
    first = trained_judge(TINY, tmp_path)
    record = first.folder / "judge.json"
    whole = record.read_bytes()
    record.write_bytes(damage)
    assert trained_judge(TINY, tmp_path).report == first.report
    assert record.read_bytes() == whole


def test_another_recipe_is_another_judge():
    assert recipe_digest(SHORT) != recipe_digest(SHORT.model_copy(update={"steps": 261}))
    assert recipe_digest(SHORT) == recipe_digest(SHORT.model_copy(update={"min_accuracy": 0.5}))


def test_a_judge_that_reads_badly_may_judge_nobody(tmp_path):
    strict = TINY.model_copy(update={"min_accuracy": 0.97})
    with pytest.raises(JudgeError, match="reads real scenes with accuracy"):
        trained_judge(strict, tmp_path)


def test_the_artifact_is_read_as_it_was_measured_and_a_changed_one_is_refused(tmp_path):
    write_evaluation_set(tmp_path / "evaluation_set")
    made = judge(TINY, tmp_path / "evaluation_set", tmp_path / "cache", tmp_path / "judge")
    found = load_judge(tmp_path / "judge")
    assert found is not None and found.report.digest == made.digest
    found.graph.write_bytes(found.graph.read_bytes() + b" ")
    with pytest.raises(DigestMismatchError):
        load_judge(tmp_path / "judge")


def test_nobody_judges_a_users_own_data(tmp_path):
    write_evaluation_set(tmp_path / "own", judged=False)
    assert judge(TINY, tmp_path / "own", tmp_path / "cache", tmp_path / "judge").accuracy is None
    assert load_judge(tmp_path / "judge") is None
    assert not (tmp_path / "cache").exists()

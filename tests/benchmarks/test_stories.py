"""Stories as tokens, and what turns answers into images."""

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, story_checkpoints
from benchmarks.stories import Dealer, encode_text, heldout_stories
from benchmarks.story_quality import Painter, Stories


@pytest.fixture(scope="module")
def stories() -> Stories:
    return Stories(heldout_stories(checkpoints.load_tokenizers(), 16, 2, 9), 9)


def test_a_story_is_dealt_without_two_scenes_that_begin_alike():
    first = np.arange(300) % 60
    dealt = Dealer(first, seed=0).deal(20, 26)
    assert dealt.shape == (20, 26)
    assert all(len(set(first[story])) == 26 for story in dealt)
    assert np.array_equal(dealt, Dealer(first, seed=0).deal(20, 26))
    asked = Dealer(first, seed=1).ask(400, 26, 8)
    assert all(len(set(row)) == 8 for row in asked.tolist())
    counts = np.bincount(asked.ravel(), minlength=26)
    assert counts.min() > 80 and counts.max() < 170  # 123 each, were it exact


def test_a_text_begins_in_the_same_place_however_long_it_is():
    text = checkpoints.load_tokenizers().text
    short, long = (encode_text(text, words, 16) for words in ("a red seven again", "a red seven left of a green two"))
    assert len(short) == len(long) == 16
    assert short[0] == text.special["bos"] and short[:4] == long[:4] and short[-1] == text.special["pad"]


def test_held_out_stories_are_asked_for_every_scene(stories):
    assert len(stories) == 2 and len(stories.tokens) == 18
    for story in range(2):
        assert len(set(stories.tokens.first[stories.rows(story)])) == 9


def test_the_kept_generators_answer_with_the_scene_that_is_asked_for(stories):
    gated, twin = (story_checkpoints.load_story(name) for name in ("gated", "ungated"))
    for model in (gated, twin):
        answers = stories.answers(model, lambda story: None)
        assert (answers.sketches == stories.tokens.sketches).float().mean() > 0.98
    opened = torch.cat([layer.flatten() for layer in stories.answers(gated, lambda story: None).gates[0]])
    assert 0 < opened.mean() < 0.33


def test_a_true_sketch_becomes_an_image_of_its_scene(stories):
    bundle = checkpoints.load_tokenizers()
    painter = Painter(story_checkpoints.load_details(), bundle.visual, story_checkpoints.blank_prompt(bundle))
    painted = painter.paint(stories.tokens.sketches)
    assert painted.shape == stories.tokens.images.shape and painted.dtype == np.uint8
    away = np.abs(painted.astype(int) - stories.tokens.images).mean((1, 2, 3))
    other = np.abs(painted.astype(int) - np.roll(stories.tokens.images, 1, 0)).mean((1, 2, 3))
    assert (away < other).all() and away.mean() < 8

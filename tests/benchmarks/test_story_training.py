"""The twins' training, on so few steps that only its rules can be seen."""

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, story_training
from benchmarks.stories import SceneTokens, heldout_stories
from benchmarks.story_training import Lesson, lessons_of, questions, train_story
from model.transformer.story_config import StoryConfig

LESSONS = (Lesson(3, 2, 3, 2), Lesson(2, 1, 5, 4))
SHAPE = StoryConfig(text_vocabulary=384, hidden_size=32, intermediate_size=48, num_attention_heads=2)


@pytest.fixture(scope="module")
def pool() -> SceneTokens:
    return heldout_stories(checkpoints.load_tokenizers(), 16, 3, 6)


def test_what_is_asked_grows_by_the_lessons_and_names_a_scene_that_is_there(pool):
    asked = list(questions(pool, LESSONS, 0))
    assert [each.captions.shape[:2] for each in asked] == [(2, 3)] * 3 + [(1, 5)] * 2
    assert [each.requests.shape[:2] for each in asked] == [(2, 2)] * 3 + [(1, 4)] * 2
    for each in asked:
        meant = each.captions.gather(1, each.which[..., None].expand_as(each.requests))
        assert torch.equal(meant[..., :4], each.requests[..., :4])


def test_the_same_seed_asks_the_same_and_another_seed_does_not(pool):
    one, same, other = (list(questions(pool, LESSONS, seed)) for seed in (0, 0, 1))
    assert all(torch.equal(x, y) for a, b in zip(one, same, strict=True) for x, y in zip(a, b, strict=True))
    assert not all(torch.equal(a.sketches, b.sketches) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("gated", [True, False])
def test_the_same_seed_gives_the_same_weights(pool, gated):
    one, other = (train_story(gated, SHAPE, pool, LESSONS)[0] for _ in range(2))
    assert one.config.gated is gated
    assert all(torch.equal(one.state_dict()[name], weight) for name, weight in other.state_dict().items())


def test_lessons_follow_each_other():
    steps = [lesson.scenes for lesson in lessons_of((Lesson(2, 1, 4, 1), Lesson(1, 1, 9, 1)))]
    assert steps == [4, 4, 9] and np.all(np.diff([lesson.scenes for lesson in story_training.CURRICULUM]) > 0)

"""The twins' training, on so few steps that only its rules can be seen."""

import numpy as np
import pytest
import torch

from benchmarks import checkpoints, story_training
from benchmarks.stories import SceneTokens, heldout_stories
from benchmarks.story_training import Lesson, lessons_of, train_story
from model.transformer.story import StoryConfig

SHAPE = StoryConfig(text_vocabulary=384, hidden_size=32, intermediate_size=48, num_attention_heads=2)


@pytest.fixture(scope="module")
def pool() -> SceneTokens:
    return heldout_stories(checkpoints.load_tokenizers(), 16, 3, 6)


def train(pool: SceneTokens, gated: bool, monkeypatch) -> tuple[torch.nn.Module, list]:
    """A few steps, and what each was asked."""
    asked = []
    loss = story_training.story_loss

    def watched(model, captions, sketches, requests, which, *rest):
        asked.append((captions.shape, requests.shape, sketches.sum().item(), which.tolist()))
        assert torch.equal(captions.gather(1, which[..., None].expand_as(requests))[..., :4], requests[..., :4])
        return loss(model, captions, sketches, requests, which, *rest)

    monkeypatch.setattr(story_training, "CURRICULUM", (Lesson(3, 2, 3, 2), Lesson(2, 1, 5, 4)))
    monkeypatch.setattr(story_training, "story_loss", watched)
    model, _ = train_story(gated, SHAPE, pool)
    monkeypatch.setattr(story_training, "story_loss", loss)
    return model, asked


def test_the_twins_see_the_same_stories_and_requests_in_growing_lessons(pool, monkeypatch):
    gated, asked = train(pool, True, monkeypatch)
    twin, asked_twin = train(pool, False, monkeypatch)
    assert asked == asked_twin
    assert [shape[:2] for shape, *_ in asked] == [(2, 3)] * 3 + [(1, 5)] * 2
    assert [shape[:2] for _, shape, *_ in asked] == [(2, 2)] * 3 + [(1, 4)] * 2
    assert gated.config.gated and not twin.config.gated


def test_the_same_seed_gives_the_same_weights(pool, monkeypatch):
    one, other = (train(pool, True, monkeypatch)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_lessons_follow_each_other():
    steps = [lesson.scenes for lesson in lessons_of((Lesson(2, 1, 4, 1), Lesson(1, 1, 9, 1)))]
    assert steps == [4, 4, 9] and np.all(np.diff([lesson.scenes for lesson in story_training.CURRICULUM]) > 0)

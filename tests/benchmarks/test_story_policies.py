"""Masks that do not look get at least what the gate uses, and not the gate's knowledge."""

import numpy as np
import pytest
import torch

from benchmarks import story_policies as policies

LAYERS, HEADS, REQUESTS, BLOCKS, SCENES = 2, 3, 5, 2, 5
SHAPE = (LAYERS, HEADS, REQUESTS, BLOCKS, SCENES, 2)
TOKENS = (16, 64)


def own() -> list[np.ndarray]:
    """Gates that look at the image of the scene that is asked for, in one head, and at one more scene now and then."""
    stories = [np.zeros(SHAPE, dtype=bool) for _ in range(3)]
    for story in stories:
        for request in range(REQUESTS):
            story[0, 1, request, :, request, 1] = True
        story[0, 1, 0, :, 4, 1] = True
    return stories


def test_stacking_is_undone_by_unstacking():
    random = np.random.default_rng(0)
    opened = random.random(SHAPE) > 0.5
    gates = policies.unstacked(opened)
    assert [gate.shape for gate in gates] == [torch.Size([1, HEADS, REQUESTS * BLOCKS, 2 * SCENES])] * LAYERS
    assert np.array_equal(policies.stacked(gates, REQUESTS), opened)
    assert gates[1][0, 2, 3 * BLOCKS + 1, 2 * 4 + 1] == opened[1, 2, 3, 1, 4, 1]


def test_the_share_counts_tokens_not_blocks():
    opened = np.zeros(SHAPE, dtype=bool)
    assert policies.skipped_share(opened, TOKENS).tolist() == [1] * REQUESTS
    opened[:, :, 0] = True
    opened[:, :, 1, :, :, 1] = True
    assert np.allclose(policies.skipped_share(opened, TOKENS), [0, 0.2, 1, 1, 1])


def test_fixed_masks_are_the_same_for_all_requests_and_open_no_less_than_the_gate():
    gate = np.mean([policies.skipped_share(story, TOKENS).mean() for story in own()])
    for opened in (policies.latest_by_head(own()), policies.latest_in_busiest_head(own(), TOKENS)):
        choose = policies.same_for_all(opened, REQUESTS)
        shown = policies.stacked(choose(0), REQUESTS)
        assert (shown == shown[:, :, :1]).all()
        assert policies.skipped_share(shown, TOKENS).mean() <= gate
        assert shown[..., 4, 1].any() and not shown[..., 0, :].any()


@pytest.mark.parametrize("modality", [0, 1])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_busiest_heads_share_is_counted_in_tokens(modality, heads):
    """Gates that open all captions, or all images, for so many heads: the same tokens make so many whole scenes."""
    opened = np.zeros(SHAPE, dtype=bool)
    for head in range(heads):
        opened[head % LAYERS, head // LAYERS, ..., modality] = True
    kept = 1 - policies.skipped_share(opened, TOKENS).mean()
    mask = policies.latest_in_busiest_head([opened], TOKENS)
    given = 1 - policies.skipped_share(mask, TOKENS).mean()
    one_scene = 1 / (LAYERS * HEADS * SCENES)
    assert kept <= given + 1e-9 < kept + one_scene
    assert mask[..., 0].sum() == mask[..., 1].sum()  # whole scenes


def test_a_gate_that_opens_nothing_pays_for_nothing():
    assert not policies.latest_in_busiest_head([np.zeros(SHAPE, dtype=bool)], TOKENS).any()


def test_cutting_heads_off_leaves_all_scenes_to_the_others():
    opened = policies.wherever_the_gate_ever_looks(own())
    assert opened.shape == (LAYERS, HEADS, 1, BLOCKS, SCENES, 2)
    assert opened[0, 1, ..., 1].all() and opened.sum() == BLOCKS * SCENES


def test_random_masks_move_the_openings_and_keep_their_number():
    moved = policies.random_choice(own(), seed=0)
    changed = 0
    for number, story in enumerate(own()):
        shown = policies.stacked(moved(number), REQUESTS)
        assert np.array_equal(shown.sum(4), story.sum(4))
        changed += int((shown != story).any((0, 1, 3, 4, 5)).sum())
    assert changed > 5
    drawn = policies.random_scenes(SHAPE, 3, 2, seed=0)
    assert (policies.stacked(drawn(2), REQUESTS).sum(4) == 2).all()

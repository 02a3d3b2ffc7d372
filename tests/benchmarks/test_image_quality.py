"""The measures of generated images, where the answer is known."""

import numpy as np
import pytest

from benchmarks.image_quality import Questions, paired_difference, variety
from components.ingest.digit_world.holdout import is_evaluation_caption
from model.tokenizers.text import TextTokenizer


def test_variety_is_the_mean_difference_of_two_images_of_one_caption():
    images = np.zeros((4, 2, 2, 3), dtype=np.uint8)  # two seeds of two captions
    images[2] = 10  # the second seed of the first caption
    assert variety(images, 2) == pytest.approx(5)
    images[:2] = [[[[10]]], [[[70]]]]  # two captions that look different, but each always the same
    images[2:] = images[:2]
    assert variety(images, 2) == 0


def test_a_paired_difference_takes_the_seeds_that_both_have():
    ours, theirs = np.ones((3, 50)), np.ones((2, 50))
    theirs[:, :10] = 0
    difference, interval = paired_difference(ours, theirs)
    assert difference == pytest.approx(0.2)
    assert 0.05 < interval.low < 0.2 < interval.high < 0.35


def test_settings_are_chosen_on_other_captions_than_those_that_measure():
    tokenizer = TextTokenizer.train(["a red seven left of a green two"], 300)
    asked = Questions.of(tokenizer, 40, 20)
    chosen_on = Questions.of(tokenizer, 40, 20, held_out=False)
    assert all(is_evaluation_caption(scene.caption) for scene in asked.scenes)
    assert not any(is_evaluation_caption(scene.caption) for scene in chosen_on.scenes)
    assert asked.text_ids.shape == (20, 40) and asked.expected.shape == (20, 4, 2)
    assert asked.prompts(3).shape == (60, 40)

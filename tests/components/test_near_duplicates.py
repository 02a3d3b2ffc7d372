import io

import numpy as np
import pytest
from PIL import Image

from components.ingest.digit_world.build import evaluation_scenes
from components.ingest.digit_world.digits import load_split
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.render import render_scenes
from components.ingest.digit_world.scenes import sample_specs
from components.ingest.settings import EvaluationSettings
from components.near_duplicates import near_pairs, thumbnail
from tests.components.data import encoded, picture

RMS = EvaluationSettings().near_duplicate_rms


def pairs(first, second, rms=RMS) -> set[tuple[int, int]]:
    return {
        pair
        for block in near_pairs(first, second, rms)
        for pair in zip(*(rows.tolist() for rows in block), strict=True)
    }


def test_it_finds_exactly_the_pairs_that_a_plain_comparison_finds():
    random = np.random.default_rng(0)
    centres = random.integers(0, 256, size=(40, 768))
    first = np.clip(centres[random.integers(40, size=200)] + random.normal(0, 4, (200, 768)), 0, 255).astype(np.uint8)
    second = np.clip(centres[random.integers(40, size=90)] + random.normal(0, 4, (90, 768)), 0, 255).astype(np.uint8)
    rms = np.sqrt(((first[:, None].astype(float) - second[None]) ** 2).mean(-1))
    bound = float(np.median(rms[rms < 20]))
    assert pairs(first, second, bound) == set(zip(*(rows.tolist() for rows in np.nonzero(rms < bound)), strict=True))


def test_extreme_values_are_compared_exactly():
    black, white = np.zeros((2, 768), np.uint8), np.full((2, 768), 255, np.uint8)
    assert pairs(np.concatenate([black, white]), white, 0.1) == {(2, 0), (2, 1), (3, 0), (3, 1)}


@pytest.mark.parametrize("change", ["jpeg", "webp", "resize", "brighten"])
def test_a_copy_that_was_changed_a_little_is_a_near_duplicate(change):
    for seed in range(5):
        original = picture(seed, 128)
        if change in ("jpeg", "webp"):
            changed = Image.open(io.BytesIO(encoded(original, change.upper(), quality=60))).convert("RGB")
        elif change == "resize":
            changed = original.resize((96, 96), Image.Resampling.BICUBIC)
        else:
            changed = original.point(lambda value: int(min(255, value * 1.02)))
        others = np.stack([thumbnail(picture(seed + 1, 128)), thumbnail(changed)])
        assert pairs(thumbnail(original)[None], others) == {(0, 1)}


def test_scenes_of_different_captions_are_never_near_duplicates():
    test, generation = load_split("test"), load_split("generation")
    held_out = evaluation_scenes()
    training = sample_specs(1500, 0, allowed=lambda caption: not is_evaluation_caption(caption))
    first = render_scenes(test.images, test.labels, held_out, 1)
    second = render_scenes(generation.images, generation.labels, training, 1)
    thumbnails = [np.stack([thumbnail(Image.fromarray(image)) for image in images]) for images in (first, second)]
    assert not pairs(*thumbnails, 1.5 * RMS)

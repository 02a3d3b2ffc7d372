"""What a package says of its grids."""

import pytest

from serving.package.runtime.shape import detail_stages, sizes


def config(sketch, image, side=64):
    return {"coarse_grid": sketch, "fine_grid": image, "image_size": [side, side]}


@pytest.mark.parametrize(
    ("sketch", "image", "stages"), [([8, 8], [8, 8], 0), ([8, 8], [16, 16], 1), ([2, 4], [16, 32], 3)]
)
def test_the_stages_are_how_often_the_sketch_is_doubled(sketch, image, stages):
    assert detail_stages(config(sketch, image)) == stages


@pytest.mark.parametrize("image", [[12, 12], [4, 4], [16, 32], [16, 8], [24, 24]])
def test_an_image_that_does_not_come_of_doubling_is_refused_with_both_grids(image):
    with pytest.raises(ValueError, match=f"8x8 cells does not become {image[0]}x{image[1]} by doubling"):
        detail_stages(config([8, 8], image))


def test_every_stage_has_a_size_the_largest_first():
    assert sizes(config([4, 4], [16, 16])) == {(64, 64): 2, (32, 32): 1, (16, 16): 0}
    assert next(iter(sizes(config([4, 4], [16, 16])))) == (64, 64)
    assert sizes(config([16, 16], [16, 16])) == {(64, 64): 0}

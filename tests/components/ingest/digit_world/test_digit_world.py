import tarfile

import numpy as np
import pytest

from common.errors import UsageError
from common.files import digest_folder
from components.ingest.digit_world.build import evaluation_scenes, write_digit_world
from components.ingest.digit_world.digits import load_split
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.render import render_scenes
from components.ingest.digit_world.scenes import (
    COLOURS,
    Glyph,
    Scene,
    all_captions,
    label_arrays,
    labels_to_slots,
    sample_specs,
)
from components.ingest.digit_world.settings import DigitWorldSettings

SMALL = DigitWorldSettings(scenes=40, planted_duplicates=3, broken_members=6, scenes_per_tar=300)


def test_digit_splits_are_disjoint_and_complete():
    splits = [set(load_split(name).indices.tolist()) for name in ("generation", "judge", "test")]
    assert [len(split) for split in splits] == [1100, 400, 297]
    assert len(set.union(*splits)) == 1797


def test_every_caption_is_distinct_and_about_a_tenth_is_held_out():
    captions = all_captions()
    held_out = [caption for caption in captions if is_evaluation_caption(caption)]
    assert len(captions) == len(set(captions)) == 7440
    assert 600 <= len(held_out) <= 900
    assert is_evaluation_caption(held_out[0].upper() + " .")


def test_captions_name_the_slots():
    red, green = Glyph(7, "red"), Glyph(2, "green")
    assert Scene(left=red, right=green).caption == "a red seven left of a green two"
    assert Scene(top=red, bottom=green).caption == "a red seven above a green two"
    assert Scene(bottom=green).caption == "a green two at the bottom"


def test_labels_round_trip_and_become_arrays():
    scene = Scene(left=Glyph(7, "red"), right=Glyph(2, "green"))
    assert labels_to_slots(scene.labels) == scene.slots
    arrays = label_arrays([scene.labels])
    assert arrays.tolist() == [[[7, 0], [2, COLOURS.index("green")], [-1, -1], [-1, -1]]]


def test_sampling_respects_the_allowed_captions_and_the_seed():
    specs = sample_specs(500, 1, allowed=lambda caption: not is_evaluation_caption(caption))
    assert not any(is_evaluation_caption(scene.caption) for scene in specs)
    assert 0.6 < np.mean([len(scene.slots) == 2 for scene in specs]) < 0.8
    assert specs == sample_specs(500, 1, allowed=lambda caption: not is_evaluation_caption(caption))
    assert specs != sample_specs(500, 2, allowed=lambda caption: not is_evaluation_caption(caption))


def test_rendering_puts_each_colour_in_its_half():
    digits = load_split("judge")
    scenes = [Scene(left=Glyph(8, "red"), right=Glyph(0, "green")), Scene(top=Glyph(3, "blue"), bottom=Glyph(1, "red"))]
    images = render_scenes(digits.images, digits.labels, scenes, seed=3)
    assert images.shape == (2, 64, 64, 3)
    assert images.dtype == np.uint8
    red, green = images[0, ..., 0].astype(float), images[0, ..., 1].astype(float)
    assert red[:, :32].sum() > 3 * red[:, 32:].sum()
    assert green[:, 32:].sum() > 3 * green[:, :32].sum()
    blue = images[1, ..., 2].astype(float)
    assert blue[:32].sum() > 3 * blue[32:].sum()
    assert np.array_equal(images, render_scenes(digits.images, digits.labels, scenes, seed=3))
    assert not np.array_equal(images, render_scenes(digits.images, digits.labels, scenes, seed=4))


def test_a_second_build_is_byte_identical(tmp_path):
    write_digit_world(tmp_path / "a", SMALL)
    write_digit_world(tmp_path / "b", SMALL)
    write_digit_world(tmp_path / "b", SMALL)
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b")


def test_evaluation_scenes_do_not_move_with_the_seed(tmp_path):
    count = len(evaluation_scenes())
    first = write_digit_world(tmp_path / "a", SMALL)
    second = write_digit_world(tmp_path / "b", SMALL.model_copy(update={"seed": 5, "scenes": 7}))
    members = [_members(world.tars) for world in (first, second)]
    names = [name for name in members[0] if int(name[:6]) < count]
    assert len(names) == 3 * count
    assert all(members[0][name] == members[1][name] for name in names)
    assert members[0][f"{count:06d}.png"] != members[1][f"{count:06d}.png"]


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(UsageError, match="other files"):
        write_digit_world(tmp_path, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def _members(tars) -> dict[str, bytes]:
    contents = {}
    for path in tars:
        with tarfile.open(path) as tar:
            contents.update({member.name: tar.extractfile(member).read() for member in tar})
    return contents

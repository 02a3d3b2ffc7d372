"""Stories: each scene of a document can be asked for, by words that mean no other one."""

import json
import tarfile

import numpy as np
import pytest

from common.files import sha256_file
from components.ingest.digit_world.build import training_stories, write_digit_world
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.scenes import Glyph, Scene
from components.ingest.digit_world.settings import DigitWorldSettings
from components.ingest.digit_world.stories import first_glyph, request, story_specs
from components.ingest.ingest import ingest
from components.ingest.settings import IngestSettings
from components.samples import iterate_samples

PLAIN = DigitWorldSettings(scenes=20, planted_duplicates=2, broken_members=0, scenes_per_tar=2000)
TOLD = PLAIN.model_copy(update={"stories": 3, "scenes_per_story": 7})


def test_a_request_means_one_scene_of_its_story_and_does_not_say_what_else_is_in_it():
    for story in story_specs(20, 26, seed=1):
        requests = [story.request(position) for position in range(26)]
        assert len(set(requests)) == 26
        for scene, words in zip(story.scenes, requests, strict=True):
            assert scene.caption.startswith(words.removesuffix(" again"))
            assert not any(place in words for place in ("left", "right", "above", "top", "bottom"))
    scene = Scene(top=Glyph(7, "red"), bottom=Glyph(2, "green"))
    assert request(scene) == "a red seven again" and first_glyph(scene) == Glyph(7, "red")


def test_a_seed_and_a_rule_give_the_same_stories_of_allowed_captions():
    drawn = story_specs(5, 12, 3, allowed=is_evaluation_caption)
    assert drawn == story_specs(5, 12, 3, allowed=is_evaluation_caption)
    assert drawn != story_specs(5, 12, 4, allowed=is_evaluation_caption)
    assert all(is_evaluation_caption(scene.caption) for story in drawn for scene in story.scenes)
    assert len({story.document_id for story in drawn}) == 5


def test_no_story_has_more_scenes_than_there_are_beginnings():
    assert len(story_specs(1, 60, 0)[0].scenes) == 60
    with pytest.raises(ValueError, match="at most 60"):
        story_specs(1, 61, 0)


def test_stories_are_off_by_default_and_change_nothing_before_them(tmp_path):
    assert DigitWorldSettings().stories == 0
    plain, told = write_digit_world(tmp_path / "plain", PLAIN), write_digit_world(tmp_path / "told", TOLD)
    assert (plain.story_scenes, told.story_scenes) == (0, 21)
    with tarfile.open(plain.tars[0]) as before, tarfile.open(told.tars[0]) as after:
        names, more = before.getnames(), after.getnames()
        assert more[: len(names)] == names and len(more) == len(names) + 3 * 21
        for name in names[-30:]:
            one, other = before.extractfile(name), after.extractfile(name)
            assert one is not None and other is not None and one.read() == other.read()
    again = write_digit_world(tmp_path / "again", TOLD)
    assert sha256_file(again.tars[0]) == sha256_file(told.tars[0])


def test_documents_arrive_in_the_table_whole_and_held_out_captions_stay_out(tmp_path):
    settings = IngestSettings(digit_world=TOLD)
    ingested = ingest(settings, tmp_path / "work", tmp_path / "samples", tmp_path / "evaluation")
    assert ingested.quarantined == {}
    rows = [row for batch in iterate_samples(tmp_path / "samples") for row in batch.to_pylist()]
    documents: dict[str, list] = {}
    for row in rows:
        documents.setdefault(row["document_id"], []).append(row)
    stories = {name: found for name, found in documents.items() if len(found) > 1}
    assert set(stories) == {story.document_id for story in training_stories(TOLD)}
    for story in training_stories(TOLD):
        found = sorted(stories[story.document_id], key=lambda row: row["position"])
        assert [row["position"] for row in found] == list(range(7))
        assert [row["text"] for row in found] == [scene.caption for scene in story.scenes]
        requests = [json.loads(row["labels"])["request"] for row in found]
        assert requests == [story.request(position) for position in range(7)]
    assert not any(is_evaluation_caption(row["text"]) for row in rows)
    singles = [found[0] for found in documents.values() if len(found) == 1]
    assert singles and all(row["document_id"] == row["id"] and row["position"] == 0 for row in singles)
    assert np.all([row["modality"] == "image" for row in rows])

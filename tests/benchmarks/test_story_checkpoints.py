"""The kept story generators are what their index says, and twins but for the gate."""

import shutil

import pytest

from benchmarks import checkpoints, story_checkpoints
from benchmarks.story_checkpoints import ABOUT, DETAILS, GATED, STORE, UNGATED
from benchmarks.story_training import CURRICULUM, SCENES
from common.errors import DigestMismatchError, UsageError

_MIB = 2**20


@pytest.mark.parametrize("name", ABOUT)
def test_every_generator_is_kept_with_the_command_that_made_it(name):
    kept = story_checkpoints.describe(name)
    assert kept["bytes"] == (STORE / name / "model.safetensors").stat().st_size < 4 * _MIB
    assert kept["command"].endswith(f"--only {name}") and "dirty" not in kept["commit"]
    assert kept["tokenizers_digest"] == checkpoints.load_tokenizers().digest
    model = story_checkpoints.load_details() if name == DETAILS else story_checkpoints.load_story(name)
    assert story_checkpoints.count(model) == kept["parameters"]


def test_the_twins_differ_in_the_gate_alone():
    gated, twin = (story_checkpoints.load_story(name) for name in (GATED, UNGATED))
    assert gated.config.model_copy(update={"gated": False}) == twin.config
    assert {name for name, _ in gated.named_parameters() if not name.startswith("gates.")} == {
        name for name, _ in twin.named_parameters()
    }
    steps = {story_checkpoints.describe(name)["steps"] for name in (GATED, UNGATED)}
    assert steps == {sum(lesson.steps for lesson in CURRICULUM)}
    assert sum(gated.key_sizes(SCENES)) == 2080


def test_one_altered_byte_is_noticed(tmp_path):
    store = shutil.copytree(STORE, tmp_path / "stories")
    weights = store / GATED / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DigestMismatchError, match="not those that were kept"):
        story_checkpoints.load_story(GATED, store)
    story_checkpoints.load_story(UNGATED, store)


def test_a_generator_that_nobody_knows_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no checkpoint gatet"):
        story_checkpoints.retrain(tmp_path, ["gatet"])

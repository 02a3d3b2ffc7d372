"""The settings tree: presets, overrides, and what a wrong key or value is told."""

from pathlib import Path

import pytest
import yaml

from common.errors import SettingsError, UsageError
from pipelines.settings import (
    MEASURED_BY,
    PRESETS,
    MeasurementSettings,
    Settings,
    load,
    override_platform,
    override_sections,
    preset_names,
    seed_overrides,
)

OWN = {name: {} for name in MEASURED_BY}
"""The sections that a measurement takes over, with nothing in them."""


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid_and_changes_what_it_names(name):
    settings = load(name)
    for section, content in yaml.safe_load((PRESETS / f"{name}.yaml").read_text()).items():
        dumped = getattr(settings, section).model_dump(mode="json")
        assert content == {key: _same_keys(dumped[key], value) for key, value in content.items()}


def _same_keys(value, pattern):
    return (
        {key: _same_keys(value[key], inner) for key, inner in pattern.items()} if isinstance(pattern, dict) else value
    )


def test_the_quickstart_keeps_the_default_bounds():
    assert load("quickstart").gate == Settings().gate


def test_overrides_are_typed_values():
    settings = load("smoke", ["training.steps=60", "tokenizer.retrain=true", "decoding.temperature=0.25"])
    assert (settings.training.steps, settings.tokenizer.retrain, settings.decoding.temperature) == (60, True, 0.25)
    assert settings.training.global_batch_size == load("smoke").training.global_batch_size


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.stpes=60", ["training.stpes", "steps"]),
        ("trainin.steps=60", ["trainin", "training"]),
        ("training.steps=many", ["training.steps"]),
        ("training.steps=0", ["training.steps"]),
        ("training.steps", ["has no value"]),
        ("training.steps.more=1", ["not a section"]),
        ("training.masking=[", ["not YAML"]),
        ("model.hiden_size=32", ["model.hiden_size", "did you mean 'model.hidden_size'"]),
        ("model.text_length=32", ["unknown key 'model.text_length'", "did you mean 'tokenizer.text_length'"]),
        ("model.text_vocabulary=400", ["did you mean 'tokenizer.text_vocabulary'"]),
        ("model.visual_levels=[4, 4]", ["unknown key 'model.visual_levels'", "hidden_size"]),
        ("model.coarse_grid=[4, 4]", ["unknown key 'model.coarse_grid'"]),
        ("tokenizer.image_size=128", ["tokenizer.image_size 128", "64"]),
        ("decoding.guidance=3", ["training.masking.unconditional_share"]),
    ],
)
def test_a_wrong_override_is_refused_with_its_key(override, words):
    with pytest.raises(SettingsError) as caught:
        load("smoke", [override])
    for word in words:
        assert word in str(caught.value)


def test_guidance_takes_the_share_of_the_training_that_comes_last():
    adapted = ["adaptation.enabled=true", "training.objective=next_token", "training.masking.unconditional_share=0.1"]
    with pytest.raises(SettingsError, match=r"adaptation\.masking\.unconditional_share"):
        load("smoke", [*adapted, "decoding.guidance=3"])
    load("smoke", [*adapted, "adaptation.masking.unconditional_share=0.1", "decoding.guidance=3"])


UNMEASURED = [
    ("benchmark.open_load.chunks=0", "gate.absolute.max_open_load_error_share"),
    ("benchmark.latency.block_previews=0", "gate.absolute.max_first_preview_p95_ms"),
]


@pytest.mark.parametrize(("off", "bound"), UNMEASURED)
def test_a_bound_on_what_is_not_measured_is_refused_with_both_settings(off, bound):
    for read in (lambda: load("quickstart", [off]), lambda: MeasurementSettings.parse(override_sections(OWN, [off]))):
        with pytest.raises(UsageError) as caught:
            read()
        assert off.partition("=")[0] in str(caught.value) and bound in str(caught.value)


def test_what_is_not_measured_may_be_left_out_with_its_bounds():
    off = [
        *(word for pair in UNMEASURED for word in (pair[0], f"{pair[1]}=null")),
        "gate.champion.max_first_preview_ratio=null",
    ]
    assert load("quickstart", off).gate.absolute.max_open_load_error_share is None
    assert MeasurementSettings.parse(override_sections(OWN, off)).benchmark.open_load.chunks == 0
    with pytest.raises(UsageError, match=r"gate\.champion\.max_first_preview_ratio"):
        load("quickstart", off[:-1])


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(SettingsError, match="did you mean 'quickstart'"):
        load("quickstrat")


def test_a_preset_of_ones_own(tmp_path: Path):
    own = tmp_path / "mine.yaml"
    own.write_text("training: {steps: 7}\n")
    assert load(str(own)).training.steps == 7
    own.write_text("trainings: {steps: 7}\n")
    with pytest.raises(SettingsError, match="training"):
        load(str(own))


def test_own_data_replaces_the_source(tmp_path: Path):
    assert load("smoke", [], tmp_path).data.source == str(tmp_path)


def test_the_size_of_the_images_is_free_where_no_judge_reads_them(tmp_path: Path):
    assert load("smoke", ["tokenizer.image_size=128"], tmp_path).tokenizer.image_size == 128
    own = tmp_path / "large.yaml"
    own.write_text("tokenizer: {image_size: 32}\n")
    assert load(str(own), [f"data.source={tmp_path}"]).tokenizer.image_size == 32
    assert load(str(own), [], tmp_path).tokenizer.image_size == 32
    with pytest.raises(SettingsError, match=r"large\.yaml.*tokenizer\.image_size 32"):
        load(str(own))


def test_a_seed_changes_what_is_drawn_and_not_what_is_measured_on():
    first, second = load("smoke"), load("smoke", seed_overrides(7))
    assert second.training.seed == second.data.digit_world.seed == second.tokenizer.visual_training.seed == 7
    assert first.benchmark == second.benchmark and first.gate == second.gate


def test_relative_data_is_meant_from_where_the_command_is_given(tmp_path, monkeypatch):
    """The steps work in another folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("data: {source: images}\n")
    for settings in (load("smoke", ["data.source=images"]), load("mine.yaml"), load("smoke", data=Path("images"))):
        assert settings.data.source == str(tmp_path / "images")
    assert load("smoke").data.source == "digit-world"


def test_a_resumed_run_may_change_its_platform_alone():
    before = load("smoke").platform.model_dump(mode="json")
    after = override_platform(before, ["platform.containers.memory=4g"])
    assert after.containers.memory == "4g" and after.containers.image == before["containers"]["image"]
    with pytest.raises(SettingsError, match="memroy"):
        override_platform(before, ["platform.containers.memroy=4g"])

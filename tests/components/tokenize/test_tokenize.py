"""The step on small tables of real PNG files."""

import io
import shutil

import numpy as np
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from common.errors import DataError, DigestMismatchError
from common.files import digest_folder, read_json, write_json
from components.evaluation_set import freeze_evaluation_set
from components.images import MOST_PIXELS, load
from components.samples import TableWriter, image_sample, table_sha256
from components.tokenize.settings import TokenizerSettings
from components.tokenize.table import captioned_images
from components.tokenize.tokenize import tokenize
from model.data.shards import Shards
from model.tokenizers.bundle import TokenizerBundle
from model.tokenizers.settings import VisualTokenizerConfig, VisualTrainingSettings
from tests.components.data import encoded

SETTINGS = TokenizerSettings(
    text_vocabulary=300,
    text_length=8,
    image_size=32,
    visual=VisualTokenizerConfig(width=16, depth=1),
    visual_training=VisualTrainingSettings(steps=5, batch_size=4, threads=1),
)


def png(seed, size=(32, 32)):
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return encoded(image)


def row(number, text="a red dot", payload=None, **changes):
    made = image_sample(
        source="a.tar",
        member=str(number),
        payload=png(number) if payload is None else payload,
        caption=text,
        mime="image/png",
        width=32,
        height=32,
    )
    return made | changes


def write_table(folder, rows):
    folder.mkdir()
    with TableWriter(folder / "samples.parquet") as writer:
        writer.write_all(rows)
    return folder


def freeze(folder, rows):
    freeze_evaluation_set(write_table(folder, rows), "near_duplicate_groups", 5.0, hold_out_captions=False)
    return folder


@pytest.fixture
def inputs(tmp_path):
    """Paths of a curated table of 12 images, its validation, and an evaluation set of 3."""
    curated = write_table(tmp_path / "curated", [row(n, f"a {['red', 'blue'][n % 2]} dot") for n in range(12)])
    evaluation = freeze(tmp_path / "evaluation", [row(n) for n in range(100, 103)])
    validate(tmp_path, curated)
    return {"curated": curated, "validation": tmp_path / "validation", "evaluation_set": evaluation}


def validate(folder, curated):
    write_json(folder / "validation" / "result.json", {"success": True, "table_sha256": table_sha256(curated)})


def run(inputs, folder, settings=SETTINGS, parent=None):
    return tokenize(
        settings, parent_tokenizers=parent, tokenizers=folder / "tokenizers", shards=folder / "shards", **inputs
    )


def test_records_hold_the_prompt_and_the_codes_of_both_scales(inputs, tmp_path):
    result = run(inputs, tmp_path / "out")
    shards = Shards(tmp_path / "out/shards", "train")
    bundle = TokenizerBundle.load(tmp_path / "out/tokenizers")
    batch = shards.batch(range(12))
    assert (result.train_samples, result.heldout_samples) == (len(shards), 3) == (12, 3)
    assert shards.tokenizers_digest == result.tokenizers_digest == bundle.digest
    assert batch.text_ids[0].tolist() == bundle.text.encode_prompt("a red dot", 8)
    assert batch.codes[0].shape == (12, 16)
    image = np.asarray(Image.open(io.BytesIO(png(5)))).transpose(2, 0, 1)
    fine = bundle.visual.encode(_float(image))
    assert batch.codes[1][5].tolist() == fine.flatten().tolist()
    assert shards.sample_id(5) == row(5)["id"]


def test_heldout_records_carry_the_groups_that_the_sets_rule_makes_of_them(inputs, tmp_path):
    """Near pictures are of one group, and so are equal captions where the set holds captions out; what was dropped is in none."""
    near = png(100, (64, 64))  # the same picture, of another size
    rows = [
        row(100, "one"),
        row(101, "a dot"),
        row(1, "near", near),
        row(102, "A  dot"),
        row(2, "a " * 40),
        row(103, "two"),
    ]
    told = {}
    for captions in (True, False):
        folder = tmp_path / str(captions)
        freeze_evaluation_set(write_table(folder, rows), "near_duplicate_groups", 5.0, hold_out_captions=captions)
        run(inputs | {"evaluation_set": folder}, tmp_path / f"out-{captions}")
        told[captions] = Shards(tmp_path / f"out-{captions}/shards", "heldout").groups
    assert told == {True: [0, 1, 0, 1, 2], False: [0, 1, 0, 2, 3]}
    assert Shards(tmp_path / "out-True/shards", "train").groups is None


def test_several_stages_have_a_grid_each_of_the_image_at_its_own_scale(inputs, tmp_path):
    import torch.nn.functional as F

    run(inputs, tmp_path / "out", settings=SETTINGS.model_copy(update={"detail_stages": 2}))
    shards, bundle = Shards(tmp_path / "out/shards", "train"), TokenizerBundle.load(tmp_path / "out/tokenizers")
    assert shards.layout.grids == ((2, 2), (4, 4), (8, 8))
    image = _float(np.asarray(Image.open(io.BytesIO(png(5)))).transpose(2, 0, 1))
    for codes, factor in zip(shards.batch([5]).codes, (4, 2, 1), strict=True):
        assert codes[0].tolist() == bundle.visual.encode(F.avg_pool2d(image, factor)).flatten().tolist()


def test_an_image_that_has_no_whole_cells_after_so_many_stages_is_refused(inputs, tmp_path):
    with pytest.raises(DataError, match=r"image_size 32 is not a multiple of 64.*\n.*lower tokenizer\.detail_stages"):
        run(inputs, tmp_path / "out", settings=SETTINGS.model_copy(update={"detail_stages": 4}))
    assert not (tmp_path / "out/shards").exists()


def _float(image):
    import torch

    return torch.from_numpy(image.copy())[None].float() / 127.5 - 1


def test_the_manifest_names_where_the_tokens_came_from(inputs, tmp_path):
    result = run(inputs, tmp_path / "out")
    manifest = read_json(tmp_path / "out/shards/shards.json")
    assert manifest["table_sha256"] == table_sha256(inputs["curated"])
    assert manifest["layout"] == {"text_length": 8, "coarse_grid": [4, 4], "detail_stages": 1}
    assert manifest["visual_levels"] == [8, 6, 5]
    description = read_json(tmp_path / "out/tokenizers/tokenizers.json")
    assert description["metrics"] == result.metrics
    assert 0 < result.metrics["ssim"] < 1


def test_a_retraining_reuses_the_parents_tokenizers_byte_for_byte(inputs, tmp_path):
    first = run(inputs, tmp_path / "first")
    parent = tmp_path / "first/tokenizers"
    second = run(inputs, tmp_path / "second", parent=parent)
    assert not first.reused
    assert second.reused
    assert (second.tokenizers_digest, second.lineage) == (first.tokenizers_digest, first.lineage)
    assert digest_folder(tmp_path / "second/tokenizers") == digest_folder(parent)


def test_retrain_begins_a_new_lineage(inputs, tmp_path):
    first = run(inputs, tmp_path / "first")
    training = SETTINGS.visual_training.model_copy(update={"seed": 1})
    again = SETTINGS.model_copy(update={"retrain": True, "visual_training": training})
    second = run(inputs, tmp_path / "second", again, parent=tmp_path / "first/tokenizers")
    assert not second.reused
    assert second.lineage != first.lineage
    assert second.tokenizers_digest != first.tokenizers_digest


def test_altered_tokenizers_of_the_parent_are_refused(inputs, tmp_path):
    run(inputs, tmp_path / "first")
    weights = tmp_path / "first/tokenizers/visual/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DigestMismatchError, match="not the ones that were saved"):
        run(inputs, tmp_path / "second", parent=tmp_path / "first/tokenizers")
    assert not (tmp_path / "second/tokenizers").exists()


def test_rows_that_cannot_be_used_are_kept_with_their_reasons(inputs, tmp_path):
    shutil.rmtree(inputs["curated"])
    rows = [
        row(0),
        row(1, "a red dot " * 9),
        row(2, "  "),
        row(3, modality="text"),
        row(4, payload=b"no image"),
        row(5, payload=b""),
        row(6, payload=png(6)[:60]),
    ]
    validate(tmp_path, write_table(inputs["curated"], rows))
    result = run(inputs, tmp_path / "out")
    assert result.train_samples == 1
    expected = {"caption_too_long": 1, "no_caption": 1, "not_an_image": 1, "no_pixels": 1, "undecodable": 2}
    assert read_json(tmp_path / "out/shards/shards.json")["dropped"]["train"] == expected
    kept = parquet.read_table(tmp_path / "out/shards/dropped.parquet").to_pylist()
    assert result.dropped == len(kept) == sum(expected.values())
    assert {"id": rows[1]["id"], "split": "train", "reason": "caption_too_long"} in kept


def test_captions_that_are_all_too_long_name_the_setting_that_helps(inputs, tmp_path):
    shutil.rmtree(inputs["curated"])
    validate(tmp_path, write_table(inputs["curated"], [row(each, "a red dot " * 9) for each in range(3)]))
    with pytest.raises(DataError, match=r"caption_too_long 3[\s\S]*tokenizer\.text_length"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out/shards").exists()


def test_a_rotated_photograph_and_a_transparent_picture_are_decoded_as_everywhere(tmp_path):
    upright = Image.new("RGB", (32, 32), "black")
    upright.paste("white", (0, 0, 32, 16))
    exif = upright.getexif()
    exif[0x0112] = 6  # shown after a quarter turn to the right
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_90), "JPEG", quality=95, exif=exif)
    transparent = encoded(Image.new("RGBA", (32, 32), (200, 0, 0, 0)))
    table = write_table(tmp_path / "table", [row(1, payload=lying), row(2, payload=transparent)])
    (samples,) = captioned_images(table, 32, drop=lambda _id, _reason: None)
    photograph, picture = samples.images
    assert photograph[:, :14].min() > 240 and photograph[:, 18:].max() < 15
    assert (picture == 255).all()
    for payload, pixels in ((lying, photograph), (transparent, picture)):
        assert (np.asarray(load(payload, MOST_PIXELS).pixels).transpose(2, 0, 1) == pixels).all()


def test_fault_02_a_split_without_a_usable_row_stops_with_the_counts(inputs, tmp_path):
    shutil.rmtree(inputs["evaluation_set"])
    freeze(inputs["evaluation_set"], [row(1, "much too long " * 9), row(2, payload=b"x"), row(3, payload=b"x")])
    with pytest.raises(DataError, match=r"'heldout' is empty: caption_too_long 1, undecodable 2"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out/shards").exists()


def test_fault_04_data_that_changed_after_validation_stops_the_run(inputs, tmp_path):
    shutil.rmtree(inputs["curated"])
    write_table(inputs["curated"], [row(n) for n in range(11)])
    with pytest.raises(DigestMismatchError, match="changed since it was validated"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fault_04_an_evaluation_set_that_changed_after_it_was_frozen_stops_the_run(inputs, tmp_path):
    (inputs["evaluation_set"] / "samples.parquet").unlink()
    with TableWriter(inputs["evaluation_set"] / "samples.parquet") as writer:
        writer.write_all([row(100), row(101), row(102) | {"payload": png(7)}])
    with pytest.raises(DigestMismatchError, match="does not hold the content"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_table_that_failed_validation_is_refused(inputs, tmp_path):
    result = inputs["validation"] / "result.json"
    write_json(result, read_json(result) | {"success": False})
    with pytest.raises(DataError, match="did not pass"):
        run(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_s_view_of_images_is_left_for_a_distance_and_is_torch_s(inputs, tmp_path):
    """The graph gives what the module computes, for any number of images."""
    import torch

    from components.benchmark.embedding import embedder
    from components.tokenize.features import Features

    run(inputs, tmp_path)
    seen_by = embedder(None, None, tmp_path / "tokenizers")
    assert seen_by is not None and seen_by.space.startswith("tokenizer:")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    features = seen_by.features(images)
    tokenizer = TokenizerBundle.load(tmp_path / "tokenizers").visual
    with torch.no_grad():
        expected = Features(tokenizer)(torch.from_numpy(images)).numpy()
    assert features.shape == (5, 2 * SETTINGS.visual.width)
    np.testing.assert_allclose(features, expected, atol=1e-4)
    np.testing.assert_allclose(seen_by.features(images[:1]), features[:1], atol=1e-5)

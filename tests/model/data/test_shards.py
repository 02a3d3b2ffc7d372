import hashlib

import numpy as np
import pytest

from common.errors import DataError, DigestMismatchError
from common.files import read_json, write_json
from model.data.shards import RecordLayout, Shards, ShardWriter, epoch_order, verify_shards, write_manifest

LAYOUT = RecordLayout(text_length=4, coarse_grid=(1, 2), detail_stages=2)


def sample_id(number):
    return hashlib.sha256(str(number).encode()).hexdigest()


def records(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 60_000, (count, width)) for width in (4, 2, 8, 32)]


def write(folder, count=10):
    parts = records(count)
    with ShardWriter(folder, "train", LAYOUT) as writer:
        for rows in (slice(0, 3), slice(3, count)):
            ids = [sample_id(number) for number in range(count)[rows]]
            text_ids, *codes = (part[rows] for part in parts)
            writer.add(ids, text_ids, codes)
    write_manifest(folder, LAYOUT, {"train": writer.count}, tokenizers_digest="t")
    return parts


def test_rows_come_back_in_any_order(tmp_path):
    written = write(tmp_path)
    shards = Shards(tmp_path, "train")
    batch = shards.batch([7, 0, 7])
    assert len(shards) == 10
    assert shards.tokenizers_digest == "t"
    for part, expected in zip([batch.text_ids, *batch.codes], written, strict=True):
        np.testing.assert_array_equal(part, expected[[7, 0, 7]])
        assert part.dtype == np.int64


def test_a_row_leads_back_to_its_sample(tmp_path):
    write(tmp_path)
    assert Shards(tmp_path, "train").sample_id(5) == sample_id(5)


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(ValueError, match="16 bits"), ShardWriter(tmp_path, "train", LAYOUT) as writer:
        text_ids, *codes = records(1)
        writer.add([sample_id(0)], text_ids + 70_000, codes)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_file_is_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"train\.bin"):
        Shards(tmp_path, "train")


def test_whole_shards_are_named_by_one_digest(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "same")
    write(tmp_path / "other", count=11)
    digest = verify_shards(tmp_path / "one")
    assert digest == verify_shards(tmp_path / "same") != verify_shards(tmp_path / "other")


@pytest.mark.parametrize("name", ["train.bin", "train.idx"])
def test_fault_04_a_shard_with_a_flipped_bit_is_refused(tmp_path, name):
    write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[17] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DigestMismatchError, match=rf"{name}: changed"):
        verify_shards(tmp_path)


def test_fault_04_a_shard_that_is_gone_or_was_never_hashed_is_refused(tmp_path):
    write(tmp_path)
    manifest = read_json(tmp_path / "shards.json")
    write_json(tmp_path / "shards.json", manifest | {"sha256": {"train.bin": manifest["sha256"]["train.bin"]}})
    with pytest.raises(DigestMismatchError, match=r"train\.idx: changed"):
        verify_shards(tmp_path)
    (tmp_path / "train.bin").unlink()
    with pytest.raises(DigestMismatchError, match=r"train\.bin: written, and gone"):
        verify_shards(tmp_path)


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no shards\.json"):
        verify_shards(tmp_path)


def test_an_absent_split_is_empty(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match="'heldout' is empty"):
        Shards(tmp_path, "heldout")


def test_order_is_a_function_of_seed_and_epoch():
    first = epoch_order(1, 0, 1000)
    np.testing.assert_array_equal(first, epoch_order(1, 0, 1000))
    assert not np.array_equal(first, epoch_order(1, 1, 1000))
    assert not np.array_equal(first, epoch_order(2, 0, 1000))
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))

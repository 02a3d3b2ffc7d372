import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import DataError, DigestMismatchError, UnsafeArchiveError, UsageError
from common.files import digest_folder
from components.evaluation_set import load_evaluation_set
from components.ingest.ingest import Ingested, ingest
from components.ingest.settings import IngestSettings
from components.samples import SAMPLE_SCHEMA, TableWriter, read_samples, table_sha256
from tests.components.data import encoded, picture, png, write_folder, write_tar

SMALL_WORLD = {"scenes": 60, "planted_duplicates": 4, "broken_members": 6, "scenes_per_tar": 400}


def run(tmp_path: Path, source: Path | str, name: str = "run", parent: Path | None = None, **settings) -> Ingested:
    parsed = IngestSettings.parse({"source": str(source), **settings})
    return ingest(parsed, tmp_path / "work", tmp_path / name / "samples", tmp_path / name / "evaluation", parent)


def quarantined(tmp_path: Path, name: str = "run") -> dict[str, str]:
    rows = pq.read_table(tmp_path / name / "samples" / "quarantine.parquet").to_pylist()
    return {f"{row['source']}#{row['member']}".rstrip("#"): row["reason"] for row in rows}


def test_the_built_in_data_gives_samples_a_quarantine_and_the_evaluation_set(tmp_path):
    result = run(tmp_path, "digit-world", digit_world=SMALL_WORLD)
    assert result.rows == 60 + 4 + 1  # the too small one decodes, and is for curate
    assert result.quarantined == dict.fromkeys(
        ["caption_empty", "caption_missing", "not_an_image", "undecodable", "zero_bytes"], 1
    )
    assert result.evaluation.rule == "caption_hash"
    assert result.evaluation.rows == result.evaluation.captions >= 600
    table = pq.read_table(tmp_path / "run" / "samples" / "samples.parquet")
    assert table.schema.equals(SAMPLE_SCHEMA)
    row = table.slice(0, 1).to_pylist()[0]
    assert (row["mime"], row["width"], row["height"], row["modality"]) == ("image/png", 64, 64, "image")
    assert set(json.loads(row["labels"])) == {"slots"}
    summary = json.loads((tmp_path / "run" / "samples" / "summary.json").read_text())
    assert summary["table_sha256"] == table_sha256(tmp_path / "run" / "samples") == result.table_sha256
    assert summary["rows"] == result.rows


def test_another_seed_changes_the_training_data_and_not_the_evaluation_set(tmp_path):
    first = run(tmp_path, "digit-world", "a", digit_world=SMALL_WORLD)
    second = run(tmp_path, "digit-world", "b", digit_world={**SMALL_WORLD, "seed": 1, "scenes": 33})
    assert first.evaluation == second.evaluation
    assert first.table_sha256 != second.table_sha256
    held_out = set(read_samples(tmp_path / "a" / "evaluation")["text"].to_pylist())
    assert not held_out & set(read_samples(tmp_path / "b" / "samples")["text"].to_pylist())


def test_the_same_data_elsewhere_gives_the_same_tables(tmp_path):
    write_folder(tmp_path / "here", 40)
    first = run(tmp_path, tmp_path / "here", "a")
    (tmp_path / "here").rename(tmp_path / "there")
    second = run(tmp_path, tmp_path / "there", "b")
    assert (first.table_sha256, first.evaluation.digest) == (second.table_sha256, second.evaluation.digest)


def test_tars_parquet_and_folders_give_the_same_contents(tmp_path):
    captions = {seed: f"mosaic number {seed}" for seed in range(20)}
    write_folder(tmp_path / "folder", 20)
    members = {}
    for seed, caption in captions.items():
        members[f"{seed:06d}.png"] = png(seed)
        members[f"{seed:06d}.json"] = json.dumps({"caption": caption}).encode()
    write_tar(tmp_path / "tars" / "a.tar", members)
    (tmp_path / "parquet").mkdir()
    rows = [{"image": {"bytes": png(seed), "path": None}, "caption": caption} for seed, caption in captions.items()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "parquet" / "a.parquet")
    digests = {run(tmp_path, tmp_path / form, form).evaluation.digest for form in ("folder", "tars", "parquet")}
    assert len(digests) == 1
    contents = [
        sorted(read_samples(tmp_path / form / "samples")["content_sha256"].to_pylist())
        for form in ("folder", "tars", "parquet")
    ]
    assert contents[0] == contents[1] == contents[2]


def test_fault_01_broken_members_are_quarantined_with_their_reasons(tmp_path):
    folder = write_folder(tmp_path / "data", 12)
    jpeg = encoded(picture(50, 200), "JPEG")
    broken = {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "bomb.png": _bomb(),
        "zero.png": b"",
        "noise.webp": b"RIFF\x00\x00\x00\x00WEBPgarbage",
        "latin.png": png(51),
        "silent.png": png(52),
        "uncaptioned.png": png(53),
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("a caption")
    (folder / "latin.txt").write_bytes("café".encode("latin-1"))
    (folder / "silent.txt").write_text(" \n\t")
    (folder / "uncaptioned.txt").unlink()
    (folder / "orphan.txt").write_text("no picture")
    result = run(tmp_path, folder)
    assert quarantined(tmp_path) == {
        "truncated.jpg": "undecodable",
        "bomb.png": "too_many_pixels",
        "zero.png": "zero_bytes",
        "noise.webp": "not_an_image",
        "latin.png": "not_utf8",
        "silent.png": "caption_empty",
        "uncaptioned.png": "caption_missing",
        "orphan.txt": "image_missing",
    }
    assert result.rows + result.withheld == 12


def test_fault_01_memory_stays_bounded(tmp_path):
    """Three bombs: 600 MB of pixels in a small PNG, 1 GB of canvas in 140 bytes of WebP, 200 MB of text in a chunk."""
    folder = write_folder(tmp_path / "data", 10)
    rows = zlib.compressobj(1)
    pixels = b"".join(rows.compress(bytes(1 + 3 * 14_000)) for _ in range(14_000)) + rows.flush()
    (folder / "pixels.png").write_bytes(_png(14_000, 14_000, (b"IDAT", pixels)))
    text = (b"zTXt", b"key\0\0" + zlib.compress(bytes(200_000_000), 1))
    (folder / "text.png").write_bytes(_png(1, 1, text, (b"IDAT", zlib.compress(bytes(4)))))
    canvas = bytearray(encoded(picture(1), "WEBP", save_all=True, append_images=[picture(2)]))
    canvas[24:30] = (16_382).to_bytes(3, "little") * 2
    (folder / "canvas.webp").write_bytes(canvas)
    for name in ("pixels", "text", "canvas"):
        (folder / f"{name}.txt").write_text("a bomb")
    script = (
        "import sys; from pathlib import Path\n"
        "from components.ingest.ingest import ingest; from components.ingest.settings import IngestSettings\n"
        "root = Path(sys.argv[1])\n"
        "ingest(IngestSettings(source=str(root / 'data')), root / 'work', root / 'run/samples', root / 'run/evaluation')\n"
        "[peak] = [line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('VmHWM')]\n"
        "print(int(peak.split()[1]) // 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert quarantined(tmp_path) == {
        "pixels.png": "too_many_pixels",
        "canvas.webp": "too_many_pixels",
        "text.png": "undecodable",
    }
    assert int(done.stdout) < 350  # MiB, of which 150 are the interpreter with its libraries


def test_fault_01_damage_within_an_archive_costs_only_what_is_damaged(tmp_path):
    members = {}
    for seed in range(6):
        members[f"{seed}.png"] = png(seed)
        members[f"{seed}.txt"] = f"mosaic {seed}".encode()
    members["2.png"] = b""
    path = write_tar(tmp_path / "data" / "a.tar", members)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        last = tar.getmember("5.png").offset
    path.write_bytes(whole[:last] + b"\xff" * 2048)
    result = run(tmp_path, tmp_path / "data")
    assert quarantined(tmp_path) == {"a.tar#2": "zero_bytes", "a.tar": "archive_damaged"}
    assert result.rows + result.withheld == 4


def test_fault_02_nothing_readable_stops_with_the_counts_by_reason(tmp_path):
    members = {"0.png": b"", "0.txt": b"zero", "1.png": b"junk", "1.txt": b"one", "2.png": b"", "2.txt": b"two"}
    write_tar(tmp_path / "data" / "a.tar", members)
    with pytest.raises(DataError, match="not_an_image 1, zero_bytes 2"):
        run(tmp_path, tmp_path / "data")
    assert not (tmp_path / "run" / "samples").exists()


def test_fault_02_an_empty_shard_stops_the_run_unless_told_otherwise(tmp_path):
    write_folder(tmp_path / "data", 10)
    write_tar(tmp_path / "data" / "empty.tar", {})
    write_tar(tmp_path / "data" / "rejected.tar", {"0.png": b"", "0.txt": b"zero"})
    with pytest.raises(DataError, match=r"empty\.tar: no sample in it; rejected\.tar: zero_bytes 1"):
        run(tmp_path, tmp_path / "data")
    assert not (tmp_path / "run" / "samples").exists()
    result = run(tmp_path, tmp_path / "data", tolerate_empty_shards=True)
    assert result.rows + result.withheld == 10


@pytest.mark.parametrize("kind", ["parent", "absolute", "symlink", "hardlink", "backslash"])
def test_fault_05_an_unsafe_member_refuses_the_archive_before_any_write(tmp_path, kind):
    path = tmp_path / "data" / "a.tar"
    write_folder(tmp_path / "data", 3)
    names = {"parent": "x/../../evil.txt", "absolute": "/etc/evil.txt", "backslash": "..\\evil.txt"}
    header = tarfile.TarInfo(names.get(kind, "link.png"))
    if kind in ("symlink", "hardlink"):
        header.type = tarfile.SYMTYPE if kind == "symlink" else tarfile.LNKTYPE
        header.linkname = "/etc/passwd"
    with tarfile.open(path, "w") as tar:
        tar.addfile(header)
    with pytest.raises(UnsafeArchiveError, match=r"a\.tar"):
        run(tmp_path, tmp_path / "data")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["data"]


def test_fault_06_a_pickle_named_png_is_quarantined_and_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    folder = write_folder(tmp_path / "data", 10)
    for protocol in (0, 2, 5):
        (folder / f"weights{protocol}.png").write_bytes(pickle.dumps(Trap(), protocol=protocol))
        (folder / f"weights{protocol}.txt").write_text("a harmless caption")
    run(tmp_path, folder)
    assert quarantined(tmp_path) == {f"weights{protocol}.png": "pickle" for protocol in (0, 2, 5)}
    assert not (tmp_path / "executed").exists()


def test_a_folder_link_that_leads_out_is_not_followed(tmp_path):
    folder = write_folder(tmp_path / "data", 10)
    (tmp_path / "secret.txt").write_text("not for training")
    (folder / "x.png").write_bytes(png(90))
    (folder / "x.txt").symlink_to(tmp_path / "secret.txt")
    run(tmp_path, folder)
    assert quarantined(tmp_path) == {"x.png": "link_outside"}


def test_a_missing_or_foreign_source_is_a_usage_or_data_error(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        run(tmp_path, tmp_path / "nowhere")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.md").write_text("no data")
    with pytest.raises(DataError, match="nothing here can be read"):
        run(tmp_path, tmp_path / "data")


def test_the_parents_evaluation_set_is_kept_byte_for_byte_and_left_out_of_training(tmp_path):
    folder = write_folder(tmp_path / "data", 60)
    first = run(tmp_path, folder, "first")
    write_folder(folder, 30, first=60)
    held_out = read_samples(tmp_path / "first" / "evaluation", ("id", "content_sha256", "text")).to_pylist()
    (folder / "again.png").write_bytes(png(500))
    (folder / "again.txt").write_text(held_out[0]["text"].upper())
    second = run(tmp_path, folder, "second", parent=tmp_path / "first" / "evaluation")
    assert second.evaluation == first.evaluation
    assert digest_folder(tmp_path / "first" / "evaluation") == digest_folder(tmp_path / "second" / "evaluation")
    training = read_samples(tmp_path / "second" / "samples", ("content_sha256", "text")).to_pylist()
    assert not {row["content_sha256"] for row in held_out} & {row["content_sha256"] for row in training}
    assert not {row["text"] for row in held_out} & {row["text"].lower() for row in training}
    assert second.withheld == first.evaluation.rows + 1
    assert second.rows + second.withheld == 91


def test_a_changed_evaluation_set_is_refused(tmp_path):
    folder = write_folder(tmp_path / "data", 60)
    run(tmp_path, folder, "first")
    evaluation = tmp_path / "first" / "evaluation"
    table = pq.read_table(evaluation / "samples.parquet")
    pq.write_table(table.slice(1), evaluation / "samples.parquet")
    with pytest.raises(DigestMismatchError):
        load_evaluation_set(evaluation)


def test_an_evaluation_sample_whose_payload_was_altered_is_refused(tmp_path):
    run(tmp_path, write_folder(tmp_path / "data", 60), "first")
    evaluation = tmp_path / "first" / "evaluation"
    rows = pq.read_table(evaluation / "samples.parquet").to_pylist()
    rows[1]["payload"] = rows[0]["payload"]
    with TableWriter(evaluation / "samples.parquet") as writer:
        writer.write_all(rows)
    with pytest.raises(DigestMismatchError, match=rf"{rows[1]['id']} does not hold the content"):
        load_evaluation_set(evaluation)
    with pytest.raises(DigestMismatchError):
        run(tmp_path, tmp_path / "data", "second", parent=evaluation)


def _bomb() -> bytes:
    """A PNG of a few bytes whose header promises sixty-four million pixels."""
    return _png(8_000, 8_000, (b"IDAT", zlib.compress(bytes(100))))


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (header, *chunks, (b"IEND", b""))
    )


def test_fault_01_samples_that_break_a_limit_or_a_rule_are_quarantined_by_that_reason(tmp_path):
    folder = write_folder(tmp_path / "data", 12)
    limits = {"max_member_bytes": 20_000, "max_text_bytes": 300, "max_caption_chars": 100}
    for name in ("large", "wordy", "long", "twin", "list", "place"):
        (folder / f"{name}.png").write_bytes(png(60))
        (folder / f"{name}.txt").write_text("a caption")
    (folder / "large.png").write_bytes(encoded(picture(61).resize((400, 400)), "PNG", compress_level=0))
    (folder / "wordy.txt").write_text("word " * 100)
    (folder / "long.txt").write_text("word " * 40)
    (folder / "twin.jpg").write_bytes(encoded(picture(62), "JPEG"))
    (folder / "list.txt").unlink()
    (folder / "list.json").write_text("[1, 2]")
    (folder / "place.json").write_text('{"document_id": "a story", "position": -1}')
    write_tar(folder / "again.tar", {"a.png": png(63), "a.txt": b"one", "b.png": png(64), "b.txt": b"two"})
    with tarfile.open(folder / "again.tar", "a") as tar:
        tar.addfile(tarfile.TarInfo("a.png"))
    pq.write_table(pa.table({"picture": [b""], "words": ["a"]}), folder / "foreign.parquet")
    wordy = {"image": [png(65), png(66)], "caption": ["word " * 100, "a caption"]}
    pq.write_table(pa.table(wordy), folder / "wordy.parquet")
    run(tmp_path, folder, limits=limits, tolerate_empty_shards=True)
    assert quarantined(tmp_path) == {
        "large.png": "member_too_large",
        "wordy.png": "member_too_large",
        "long.png": "caption_too_long",
        "twin.jpg": "several_images",
        "list.png": "json_unreadable",
        "place.png": "place_invalid",
        "again.tar#a": "repeated_key",
        "foreign.parquet": "columns_missing",
        "wordy.parquet#row-00000000": "member_too_large",
    }

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.errors import DataError, DigestMismatchError, EvaluationLeakError
from common.files import write_json
from components.curate.curate import Curated, curate
from components.curate.settings import CurateSettings
from components.evaluation_set import freeze_evaluation_set
from components.samples import SAMPLES_FILE, TableWriter, image_sample, read_samples, table_sha256
from tests.components.data import encoded, picture


def row(seed: int, caption: str | None = None, **changes: Any) -> dict[str, Any]:
    payload = changes.pop("payload", encoded(picture(seed)))
    member = changes.pop("member", f"{seed:04d}")
    made = image_sample(
        source="a.tar",
        member=member,
        payload=payload,
        caption=caption or f"caption {seed}",
        mime="image/png",
        width=32,
        height=32,
    )
    return {**made, **changes}


def table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    with TableWriter(folder / SAMPLES_FILE) as writer:
        writer.write_all(rows)
    return folder


def run(tmp_path: Path, rows: list[dict[str, Any]], *, hold_out_captions: bool = True, **settings: Any) -> Curated:
    """Curate `rows` against an evaluation set of the pictures 900 to 909."""
    samples = table(tmp_path / "samples", rows)
    evaluation = table(tmp_path / "evaluation", [row(seed) for seed in range(900, 910)])
    freeze_evaluation_set(
        evaluation, "near_duplicate_groups", near_duplicate_rms=5.0, hold_out_captions=hold_out_captions
    )
    write_json(tmp_path / "validation" / "result.json", {"success": True, "table_sha256": table_sha256(samples)})
    return curate(CurateSettings(**settings), samples, evaluation, tmp_path / "validation", tmp_path / "curated")


def test_every_dropped_row_is_kept_with_its_reason(tmp_path):
    rows = [row(seed) for seed in range(10)]
    rows.append(row(3, member="copy"))
    rows.append(row(20, payload=encoded(picture(20, 8))))
    rows.append(row(21, payload=encoded(picture(21))[:-50]))
    result = run(tmp_path, rows)
    assert result.rows == 10
    assert result.dropped == {"exact_duplicate": 1, "too_small": 1, "undecodable": 1}
    dropped = pq.read_table(tmp_path / "curated" / "dropped.parquet").to_pylist()
    assert [(each["source"], each["tier"], each["reason"]) for each in dropped] == [
        ("a.tar#copy", "exact", "exact_duplicate"),
        ("a.tar#0020", "quality", "too_small"),
        ("a.tar#0021", "decode", "undecodable"),
    ]
    kept = read_samples(tmp_path / "curated")
    assert len(set(kept["content_sha256"].to_pylist())) == kept.num_rows == 10
    report = json.loads((tmp_path / "curated" / "report.json").read_text())
    assert report["table_sha256"] == table_sha256(tmp_path / "curated") == result.table_sha256


def test_duplicates_stay_where_the_settings_say_so(tmp_path):
    assert run(tmp_path, [row(1), row(1, member="copy")], drop_exact_duplicates=False).rows == 2


def test_fault_02_everything_dropped_stops_with_the_counts_by_reason(tmp_path):
    with pytest.raises(DataError, match="too_small 2, undecodable 1"):
        run(tmp_path, [row(1), row(2), row(3, payload=b"junk")], minimum_side=64)
    assert not (tmp_path / "curated").exists()


@pytest.mark.parametrize(
    ("leak", "why"),
    [
        (lambda: row(900, "another caption", member="leak"), "same content"),
        (lambda: row(50, "Caption  903.", member="leak"), "same caption"),
        (
            lambda: row(50, member="leak", payload=encoded(picture(904), "JPEG", quality=95, subsampling=0)),
            "near-duplicate picture",
        ),
        (lambda: row(50, member="leak", payload=encoded(picture(905, 48))), "near-duplicate picture"),
    ],
)
def test_fault_03_an_evaluation_sample_in_the_training_data_is_blocked(tmp_path, leak, why):
    with pytest.raises(EvaluationLeakError, match=rf"a\.tar#leak .*{why}") as caught:
        run(tmp_path, [*(row(seed) for seed in range(5)), leak()])
    assert "1 training samples" in str(caught.value)
    assert leak()["id"] in str(caught.value)
    assert not (tmp_path / "curated").exists()


def test_a_shared_caption_is_no_leak_where_the_rule_does_not_hold_captions_out(tmp_path):
    assert run(tmp_path, [row(1, "caption 903")], hold_out_captions=False).rows == 1


def test_a_dropped_row_is_no_leak(tmp_path):
    small = row(50, "caption 903", payload=encoded(picture(50, 8)))
    assert run(tmp_path, [row(1), small]).rows == 1


def test_fault_04_a_table_that_changed_since_validation_is_refused(tmp_path):
    run(tmp_path, [row(1)])
    with TableWriter(tmp_path / "samples" / SAMPLES_FILE) as writer:
        writer.write(row(2))
    with pytest.raises(DigestMismatchError, match="changed since it was validated"):
        curate(
            CurateSettings(), tmp_path / "samples", tmp_path / "evaluation", tmp_path / "validation", tmp_path / "again"
        )
    assert not (tmp_path / "again").exists()


def test_a_table_that_failed_validation_is_refused(tmp_path):
    run(tmp_path, [row(1)])
    arguments = (tmp_path / "samples", tmp_path / "evaluation", tmp_path / "validation", tmp_path / "again")
    write_json(tmp_path / "validation" / "result.json", {"success": False, "table_sha256": table_sha256(arguments[0])})
    with pytest.raises(DataError, match="did not pass"):
        curate(CurateSettings(), *arguments)

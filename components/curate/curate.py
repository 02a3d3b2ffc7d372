"""Curate: drop what is not worth training on, keep why, and let nothing of the evaluation set through."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import atomic_path, write_json
from common.progress import report
from components.curate.filters import UNDECODABLE, ExactDuplicateFilter, Filter, SizeFilter
from components.curate.leaks import LeakCheck, refuse_leaks
from components.curate.settings import CurateSettings
from components.evaluation_set import load_evaluation_set
from components.images import MOST_PIXELS, UnreadableImageError, load
from components.near_duplicates import thumbnail
from components.samples import (
    DROPPED_FILE,
    DROPPED_SCHEMA,
    SAMPLES_FILE,
    TableWriter,
    count_samples,
    iterate_samples,
    table_sha256,
)
from components.validate.result import require_validated

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Curated:
    """What curate wrote: rows kept, rows dropped by reason, the new table's digest."""

    rows: int
    dropped: Mapping[str, int]
    table_sha256: str


def curate(settings: CurateSettings, samples: Path, evaluation_set: Path, validation: Path, curated: Path) -> Curated:
    """Write the folder `curated`: `samples.parquet`, `dropped.parquet`, `report.json`; whole or not at all.

    Raises `DigestMismatchError` where `samples` is not the table that `validation` looked at, or the evaluation set is
    not the frozen one; `EvaluationLeakError` with the offenders where a kept row shares content, held-out caption or
    nearly the picture with an evaluation sample; `DataError` with the counts by reason where every row is dropped.
    """
    require_validated(samples, validation)
    leaks = LeakCheck(evaluation_set, load_evaluation_set(evaluation_set))
    with atomic_path(curated) as folder:
        folder.mkdir(parents=True)
        rows, dropped = _filter(samples, _filters(settings), leaks, folder)
        if not rows:
            counts = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "the table is empty"
            raise DataError(
                f"everything was dropped: {counts}",
                where=str(samples),
                fix="look at the data, or at curation.minimum_side",
            )
        refuse_leaks(leaks.finish(), samples)
        result = Curated(rows=rows, dropped=dropped, table_sha256=table_sha256(folder))
        write_json(folder / REPORT_FILE, {"rows": rows, "dropped": dropped, "table_sha256": result.table_sha256})
    return result


def _filters(settings: CurateSettings) -> list[Filter]:
    filters: list[Filter] = [SizeFilter(settings.minimum_side)]
    if settings.drop_exact_duplicates:
        filters.append(ExactDuplicateFilter())
    return filters


def _filter(samples: Path, filters: Sequence[Filter], leaks: LeakCheck, folder: Path) -> tuple[int, dict[str, int]]:
    """Stream every row through the filters into the kept or the dropped table; return the counts."""
    total, done = count_samples(samples), 0
    reasons: Counter[str] = Counter()
    with TableWriter(folder / SAMPLES_FILE) as kept, TableWriter(folder / DROPPED_FILE, DROPPED_SCHEMA) as dropped:
        for batch in iterate_samples(samples):
            for row in batch.to_pylist():
                verdict = _judge(row, filters, leaks)
                if verdict is None:
                    kept.write(row)
                else:
                    tier, reason = verdict
                    dropped.write({"id": row["id"], "source": row["source"], "tier": tier, "reason": reason})
                    reasons[reason] += 1
            done += batch.num_rows
            report(done, total, "curating")
        return kept.rows, dict(sorted(reasons.items()))


def _judge(row: dict[str, Any], filters: Sequence[Filter], leaks: LeakCheck) -> tuple[str, str] | None:
    """The tier and the reason to drop this row; a row that stays is handed to the leak check."""
    try:
        pixels = load(row["payload"] or b"", MOST_PIXELS).pixels
    except UnreadableImageError:
        return "decode", UNDECODABLE
    for each in filters:
        if (reason := each.reason(row["content_sha256"], pixels)) is not None:
            return each.tier, reason
    leaks.add(row["id"], row["content_sha256"], row["text"] or "", row["source"], thumbnail(pixels))
    return None

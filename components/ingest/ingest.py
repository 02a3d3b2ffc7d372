"""Ingest: from raw data to the Sample table, the quarantine table and the frozen evaluation set."""

import shutil
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import atomic_path, write_json
from common.progress import report
from components.evaluation_set import EvaluationSet
from components.ingest.assemble import assemble
from components.ingest.digit_world.build import write_digit_world
from components.ingest.evaluation.split import Split, split_by_parent, split_by_rule
from components.ingest.evaluation.survey import Survey
from components.ingest.readers.parts import Rejected
from components.ingest.readers.source import Source, find_source
from components.ingest.settings import BUILT_IN, IngestSettings
from components.samples import (
    QUARANTINE_FILE,
    QUARANTINE_SCHEMA,
    SAMPLES_FILE,
    TableWriter,
    iterate_samples,
    table_sha256,
)

SUMMARY_FILE = "summary.json"


@dataclass(frozen=True)
class Ingested:
    """What ingest wrote. `withheld` rows stood in the data and belong to the evaluation set, or repeat one of it."""

    rows: int
    withheld: int
    quarantined: Mapping[str, int]
    table_sha256: str
    evaluation: EvaluationSet


def ingest(
    settings: IngestSettings, work: Path, samples: Path, evaluation_set: Path, parent_evaluation_set: Path | None = None
) -> Ingested:
    """Read `settings.source` and write the artifact folders `samples` and `evaluation_set`, both whole or not at all.

    `work` takes the built-in data and a spool, and may be deleted afterwards. With `parent_evaluation_set`, that set is
    kept byte for byte, and what it holds is left out of `samples`.

    Raises `UsageError` where there is no such path, `UnsafeArchiveError` before anything is written where an archive
    has a member that points outside, and `DataError` where nothing (or, in one shard, nothing) can be read.
    """
    source = open_source(settings, work)
    source.refuse_unsafe_archives()
    survey = Survey(compare_pictures=settings.source != BUILT_IN and parent_evaluation_set is None)
    with atomic_path(samples) as new_samples, atomic_path(evaluation_set) as new_evaluation, ExitStack() as cleanup:
        new_samples.mkdir(parents=True)
        spool = work / "spool"
        spool.mkdir(parents=True, exist_ok=True)
        cleanup.callback(shutil.rmtree, spool, ignore_errors=True)
        quarantined = _spool(settings, source, survey, spool / SAMPLES_FILE, new_samples / QUARANTINE_FILE)
        if parent_evaluation_set is None:
            split = split_by_rule(settings, survey, spool, new_evaluation)
        else:
            split = split_by_parent(parent_evaluation_set, survey, new_evaluation)
        rows = _write_training(spool, split, new_samples / SAMPLES_FILE)
        ingested = Ingested(
            rows=rows,
            withheld=len(survey) - rows,
            quarantined=quarantined,
            table_sha256=table_sha256(new_samples),
            evaluation=split.evaluation,
        )
        write_json(new_samples / SUMMARY_FILE, _summary(ingested))
    return ingested


def open_source(settings: IngestSettings, work: Path) -> Source:
    """The files to read; the built-in data is written to `work` first, as tars like anybody's."""
    if settings.source == BUILT_IN:
        return find_source(write_digit_world(work / BUILT_IN, settings.digit_world).folder)
    return find_source(Path(settings.source).expanduser())


def _spool(settings: IngestSettings, source: Source, survey: Survey, spool: Path, quarantine: Path) -> dict[str, int]:
    """Write every readable sample to the spool and every other to the quarantine table; return the counts by reason."""
    reasons: dict[str, Counter[str]] = {shard: Counter() for shard in source.shards}
    given: Counter[str] = Counter()
    with TableWriter(spool) as readable, TableWriter(quarantine, QUARANTINE_SCHEMA) as refused:
        for parts in source.read(settings.limits):
            outcome = parts if isinstance(parts, Rejected) else assemble(parts, settings.limits)
            if isinstance(outcome, Rejected):
                refused.write(vars(outcome))
                reasons.setdefault(outcome.source, Counter())[outcome.reason] += 1
            else:
                readable.write(outcome.row)
                survey.add(outcome.row, outcome.pixels)
                given[parts.source] += 1
            report(len(survey), 0, f"{len(survey)} samples read")
    total = sum(reasons.values(), Counter())
    if not len(survey):
        raise DataError(f"nothing readable: {_describe(total)}", where=str(source.root), fix="see docs/your-data.md")
    empty = [shard for shard in source.shards if not given[shard]]
    if empty and not settings.tolerate_empty_shards:
        listed = "; ".join(f"{shard}: {_describe(reasons[shard])}" for shard in empty)
        raise DataError(
            f"{len(empty)} of {len(source.shards)} shards give no sample: {listed}",
            where=str(source.root),
            fix="repair or remove them, or set data.tolerate_empty_shards=true",
        )
    return dict(sorted(total.items()))


def _describe(reasons: Counter[str]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items())) or "no sample in it"


def _write_training(spool: Path, split: Split, path: Path) -> int:
    """Copy the spool's rows that are neither held out nor withheld; return how many."""
    import pyarrow as pa

    start = 0
    with TableWriter(path) as writer:
        for batch in iterate_samples(spool):
            keep = ~split.left_out[start : start + batch.num_rows]
            writer.write_all(batch.filter(pa.array(keep)).to_pylist())
            start += batch.num_rows
        if not writer.rows:
            raise DataError("every sample belongs to the evaluation set: nothing is left to train on", where=str(spool))
        return writer.rows


def _summary(ingested: Ingested) -> dict[str, object]:
    return {
        "rows": ingested.rows,
        "withheld": ingested.withheld,
        "quarantined": dict(ingested.quarantined),
        "table_sha256": ingested.table_sha256,
        "evaluation_digest": ingested.evaluation.digest,
    }

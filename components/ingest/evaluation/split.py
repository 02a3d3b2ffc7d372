"""Part the samples that were read into the evaluation set and the rest."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.captions import normalise_caption
from components.evaluation_set import EvaluationSet, freeze_evaluation_set, load_evaluation_set
from components.ingest.evaluation.choose import choose_by_caption, choose_by_groups, one_row_per_content
from components.ingest.evaluation.survey import Survey
from components.ingest.settings import BUILT_IN, IngestSettings
from components.samples import SAMPLES_FILE, TableWriter, iterate_samples, read_samples


@dataclass(frozen=True)
class Split:
    """The frozen set, and which rows of the survey are not for training: bool [rows]."""

    evaluation: EvaluationSet
    left_out: np.ndarray


def split_by_rule(settings: IngestSettings, survey: Survey, spool: Path, evaluation_set: Path) -> Split:
    """Choose a new evaluation set from the spooled samples and write it to the new folder `evaluation_set`."""
    built_in = settings.source == BUILT_IN
    chosen = choose_by_caption(survey) if built_in else choose_by_groups(survey, settings.evaluation)
    kept = _mask(one_row_per_content(chosen, survey), len(survey))
    evaluation_set.mkdir(parents=True)
    start = 0
    with TableWriter(evaluation_set / SAMPLES_FILE) as writer:
        for batch in iterate_samples(spool):
            writer.write_all(batch.filter(pa.array(kept[start : start + batch.num_rows])).to_pylist())
            start += batch.num_rows
    frozen = freeze_evaluation_set(
        evaluation_set,
        rule="caption_hash" if built_in else "near_duplicate_groups",
        near_duplicate_rms=settings.evaluation.near_duplicate_rms,
        hold_out_captions=built_in or settings.evaluation.hold_out_captions,
    )
    return Split(frozen, _mask(chosen, len(survey)))


def split_by_parent(parent: Path, survey: Survey, evaluation_set: Path) -> Split:
    """Keep the parent's set byte for byte; leave out the samples with an id, a content or a held-out caption of it.

    Raises `DigestMismatchError` where the parent's samples are not those that were frozen.
    """
    frozen = load_evaluation_set(parent)
    shutil.copytree(parent, evaluation_set)
    held_out = read_samples(parent, ("id", "content_sha256", "text"))
    ids = set(held_out["id"].to_pylist())
    contents = set(held_out["content_sha256"].to_pylist())
    captions = {normalise_caption(text) for text in held_out["text"].to_pylist()} if frozen.hold_out_captions else set()
    left_out = [
        row
        for row, (identity, content, caption) in enumerate(
            zip(survey.ids, survey.contents, survey.captions, strict=True)
        )
        if identity in ids or content in contents or normalise_caption(caption) in captions
    ]
    return Split(frozen, _mask(left_out, len(survey)))


def _mask(rows: list[int], total: int) -> np.ndarray:
    mask = np.zeros(total, dtype=bool)
    mask[rows] = True
    return mask

"""The evaluation set as an artifact: `samples.parquet`, and `evaluation.json` that names its digest and its rule."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import DataError, DigestMismatchError
from common.files import digest_json, read_json, write_json
from components.captions import normalise_caption
from components.samples import iterate_samples

EVALUATION_FILE = "evaluation.json"
_READ_COLUMNS = ("id", "content_sha256", "text", "labels", "payload")

Rule = Literal["caption_hash", "near_duplicate_groups"]
"""`caption_hash`: every caption of the digit world that a hash picks. `near_duplicate_groups`: whole groups of
near-duplicates of a user's own data."""


@dataclass(frozen=True)
class EvaluationSet:
    """What `evaluation.json` holds.

    `rows` samples with `captions` different captions. No training sample may have the content of one of them, nor a
    picture within `near_duplicate_rms` of one, nor, where `hold_out_captions` is true, the caption of one.
    """

    digest: str
    rule: Rule
    rows: int
    captions: int
    near_duplicate_rms: float
    hold_out_captions: bool


def content_digest(rows: Iterable[tuple[str, str | None, str | None]]) -> str:
    """One digest over the (content, caption, labels) of all rows, whatever their order and wherever they were read."""
    identities = sorted([content, normalise_caption(caption or ""), labels or ""] for content, caption, labels in rows)
    return digest_json(identities)


def freeze_evaluation_set(
    folder: Path, rule: Rule, near_duplicate_rms: float, hold_out_captions: bool
) -> EvaluationSet:
    """Compute the digest of the `samples.parquet` in `folder` and write `evaluation.json` beside it.

    Raises `DigestMismatchError` where a content is not the one that its `content_sha256` names.
    """
    rows = list(_identities(folder))
    frozen = EvaluationSet(
        digest=content_digest(rows),
        rule=rule,
        rows=len(rows),
        captions=len({normalise_caption(caption or "") for _, caption, _ in rows}),
        near_duplicate_rms=near_duplicate_rms,
        hold_out_captions=hold_out_captions,
    )
    write_json(folder / EVALUATION_FILE, asdict(frozen))
    return frozen


def load_evaluation_set(folder: Path) -> EvaluationSet:
    """Read a frozen set; every payload is hashed again.

    Raises `DigestMismatchError` where its samples are not those that were frozen, `DataError` where there is no set.
    """
    path = folder / EVALUATION_FILE
    if not path.is_file():
        raise DataError(
            f"no {EVALUATION_FILE} here", where=str(folder), fix="give the evaluation set that ingest wrote"
        )
    frozen = EvaluationSet(**read_json(path))
    if content_digest(_identities(folder)) != frozen.digest:
        raise DigestMismatchError(
            "the samples are not those that were frozen",
            where=str(folder),
            fix="restore the evaluation set of this lineage",
        )
    return frozen


def _identities(folder: Path) -> Iterator[tuple[str, str | None, str | None]]:
    """(content, caption, labels) of each row. The digest covers contents by name: here each name is held to them."""
    for batch in iterate_samples(folder, _READ_COLUMNS):
        for row in batch.to_pylist():
            content = row["payload"] if row["payload"] is not None else (row["text"] or "").encode()
            if hashlib.sha256(content).hexdigest() != row["content_sha256"]:
                raise DigestMismatchError(
                    f"sample {row['id']} does not hold the content that its content_sha256 names",
                    where=str(folder),
                    fix="restore the evaluation set of this lineage",
                )
            yield row["content_sha256"], row["text"], row["labels"]

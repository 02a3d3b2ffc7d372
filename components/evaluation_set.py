"""The evaluation set as an artifact: `samples.parquet`, and `evaluation.json` that names its digest and its rule."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from common.errors import DataError, DigestMismatchError
from common.files import digest_json, read_json, write_json
from components.captions import normalise_caption
from components.samples import read_samples

EVALUATION_FILE = "evaluation.json"
_IDENTITY_COLUMNS = ("content_sha256", "text", "labels")

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
    """Compute the digest of the `samples.parquet` in `folder` and write `evaluation.json` beside it."""
    rows = _identities(folder)
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
    """Read a frozen set. Raises `DigestMismatchError` where its samples are not those that were frozen."""
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


def _identities(folder: Path) -> list[tuple[str, str | None, str | None]]:
    table = read_samples(folder, _IDENTITY_COLUMNS)
    return list(zip(*(table[name].to_pylist() for name in _IDENTITY_COLUMNS), strict=True))

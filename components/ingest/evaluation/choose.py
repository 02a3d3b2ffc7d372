"""Which samples are held out: by the digit world's rule, or whole groups of near-duplicates of a user's own data."""

import hashlib
from collections.abc import Sequence

from common.errors import DataError
from components.captions import normalise_caption
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.evaluation.survey import Survey
from components.ingest.settings import EvaluationSettings
from components.sample_groups import group_samples

_LARGEST_SHARE = 0.2
_MANY_GROUPS = 10
"""As many at least, where the data allow it: samples of one group are little news beside one another."""


def choose_by_caption(survey: Survey) -> list[int]:
    """The digit world's rule: rows of captions that a hash picks."""
    return [row for row, caption in enumerate(survey.captions) if is_evaluation_caption(caption)]


def choose_by_groups(survey: Survey, settings: EvaluationSettings) -> list[int]:
    """Whole groups in the order of a hash of their content, until the wanted number of rows is reached.

    The hash is that of the group's smallest content digest, so neither a seed nor the order or place of the files
    matters. Groups that would take more than a tenth of the wanted rows wait until all smaller ones are in, and one that
    would take more than a fifth of all rows is passed over while there are others. Raises `DataError` where no group can be
    held out.
    """
    captions = [normalise_caption(caption) for caption in survey.captions] if settings.hold_out_captions else None
    groups = group_samples(survey.contents, captions, survey.thumbnails, settings.near_duplicate_rms)
    wanted, most = _wanted(len(survey.contents), settings)
    eligible = [group for group in groups if min(survey.smallest_sides[row] for row in group) >= settings.minimum_side]
    eligible.sort(key=lambda rows: _rank(survey.contents, rows))
    eligible.sort(key=lambda rows: len(rows) > max(1, wanted // _MANY_GROUPS))  # stable
    chosen: list[int] = []
    for group in eligible:
        if len(chosen) < wanted and len(chosen) + len(group) <= most:
            chosen.extend(group)
    if not chosen:
        smallest = min(eligible, key=len, default=[])
        chosen = smallest if len(smallest) <= len(survey) // 2 else []
    if not chosen:
        raise DataError(
            f"no evaluation set can be held out: {len(survey.contents)} samples fall into {len(groups)} groups of the same "
            f"caption or nearly the same picture, the largest of {max(map(len, groups))}",
            where="data.evaluation",
            fix="give more varied data, or set data.evaluation.hold_out_captions=false where captions are mere classes",
        )
    return sorted(chosen)


def _wanted(rows: int, settings: EvaluationSettings) -> tuple[int, int]:
    """How many rows to hold out, and how many at most: never more than a fifth unless the fraction says so, never all."""
    ceiling = max(1, int(rows * max(_LARGEST_SHARE, settings.fraction)))
    wanted = min(ceiling, max(round(rows * settings.fraction), settings.minimum_rows))
    return wanted, min(rows - 1, ceiling)


def _rank(contents: Sequence[str], rows: Sequence[int]) -> str:
    return hashlib.sha256(min(contents[row] for row in rows).encode()).hexdigest()


def one_row_per_content(rows: Sequence[int], survey: Survey) -> list[int]:
    """Drop exact copies among held-out rows, keeping the one whose caption comes first."""
    best: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: (normalise_caption(survey.captions[row]), survey.ids[row])):
        best.setdefault(survey.contents[row], row)
    return sorted(best.values())

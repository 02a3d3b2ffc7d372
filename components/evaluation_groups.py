"""Which samples of an evaluation set are no news beside one another: the groups that ingest held out as a whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from components.captions import normalise_caption
from components.evaluation_set import EvaluationSet
from components.images import MOST_PIXELS, UnreadableImageError, load
from components.near_duplicates import THUMBNAIL_VALUES, thumbnail
from components.sample_groups import group_samples
from components.samples import iterate_samples

_COLUMNS = ("id", "content_sha256", "text", "modality", "payload")


def group_numbers(evaluation_set: Path, frozen: EvaluationSet, sample_ids: Sequence[str]) -> list[int]:
    """The group of each of these samples of the set `frozen`, numbered from 0 in their order.

    Two are of one group where any chain of equal contents, of captions (where the set holds captions out) and of pictures
    within its `near_duplicate_rms` joins them: by the set's own rule, on what is left of it. A sample whose picture cannot
    be read stands alone.
    """
    wanted, row_of = set(sample_ids), dict[str, int]()
    contents, captions, pictures = list[str](), list[str](), bytearray()
    for batch in iterate_samples(evaluation_set, _COLUMNS):
        for row in batch.to_pylist():
            if row["id"] not in wanted or row["modality"] != "image":
                continue
            try:
                pictures += thumbnail(load(row["payload"] or b"", MOST_PIXELS).pixels).tobytes()
            except UnreadableImageError:
                continue
            row_of[row["id"]] = len(contents)
            contents.append(row["content_sha256"])
            captions.append(normalise_caption(row["text"] or ""))
    thumbnails = np.frombuffer(pictures, dtype=np.uint8).reshape(-1, THUMBNAIL_VALUES)
    groups = group_samples(
        contents, captions if frozen.hold_out_captions else None, thumbnails, frozen.near_duplicate_rms
    )
    group_of = {row: f"group {number}" for number, rows in enumerate(groups) for row in rows}
    names = [group_of[row_of[each]] if each in row_of else each for each in sample_ids]
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]

"""Look for the evaluation set in the training data, before anything is trained on it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import EvaluationLeakError
from components.captions import normalise_caption
from components.evaluation_set import EvaluationSet
from components.images import MOST_PIXELS, load
from components.near_duplicates import THUMBNAIL_VALUES, near_pairs, thumbnail
from components.samples import iterate_samples

_LISTED = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Leak:
    """A training sample, by id and source, that gives an evaluation sample away, and how."""

    id: str
    source: str
    why: str
    evaluation_id: str


class LeakCheck:
    """Holds what the evaluation set may not share; training rows are added one by one and judged together at the end."""

    def __init__(self, folder: Path, frozen: EvaluationSet):
        self._frozen = frozen
        self._by_content: dict[str, str] = {}
        self._by_caption: dict[str, str] = {}
        self._ids: list[str] = []
        self._rows: list[tuple[str, str]] = []
        self._thumbnails = bytearray()
        self._leaks: list[Leak] = []
        pictures = bytearray()
        for batch in iterate_samples(folder, ("id", "content_sha256", "text", "payload")):
            for row in batch.to_pylist():
                self._ids.append(row["id"])
                self._by_content.setdefault(row["content_sha256"], row["id"])
                self._by_caption.setdefault(normalise_caption(row["text"] or ""), row["id"])
                pictures += thumbnail(load(row["payload"], MOST_PIXELS).pixels).tobytes()
        self._pictures = _as_rows(pictures)

    def add(self, identity: str, content_sha256: str, caption: str, source: str, picture: np.ndarray) -> None:
        """Take a training row with its thumbnail (uint8 [768])."""
        self._rows.append((identity, source))
        self._thumbnails += picture.tobytes()
        if evaluation_id := self._by_content.get(content_sha256):
            self._leaks.append(Leak(identity, source, "same content", evaluation_id))
        if self._frozen.hold_out_captions and (evaluation_id := self._by_caption.get(normalise_caption(caption))):
            self._leaks.append(Leak(identity, source, "same caption", evaluation_id))

    def finish(self) -> list[Leak]:
        """Every leak, one for each training row and way: equal contents and captions, then nearly equal pictures."""
        contents = {leak.id for leak in self._leaks if leak.why == "same content"}
        found = list(self._leaks)
        for training, evaluation in near_pairs(
            _as_rows(self._thumbnails), self._pictures, self._frozen.near_duplicate_rms
        ):
            for row in np.unique(training, return_index=True)[1]:
                identity, source = self._rows[training[row]]
                if identity not in contents:
                    contents.add(identity)
                    found.append(Leak(identity, source, "near-duplicate picture", self._ids[evaluation[row]]))
        return found


def refuse_leaks(leaks: Sequence[Leak], where: Path) -> None:
    """Raises `EvaluationLeakError` that lists the offenders."""
    if not leaks:
        return
    listed = [
        f"  {leak.source} (id {leak.id}): {leak.why} as evaluation sample {leak.evaluation_id}"
        for leak in leaks[:_LISTED]
    ]
    for leak in leaks:  # the message would not hold thousands of them
        _log.error("%s (id %s): %s as evaluation sample %s", leak.source, leak.id, leak.why, leak.evaluation_id)
    if len(leaks) > _LISTED:
        listed.append(f"  and {len(leaks) - _LISTED} more: the step's log names each")
    raise EvaluationLeakError(
        f"{len({leak.id for leak in leaks})} training samples give the evaluation set away:\n" + "\n".join(listed),
        where=str(where),
        fix="remove them from the data, or begin again under another --home, with an evaluation set of its own",
    )


def _as_rows(thumbnails: bytearray) -> np.ndarray:
    return np.frombuffer(bytes(thumbnails), dtype=np.uint8).reshape(-1, THUMBNAIL_VALUES)

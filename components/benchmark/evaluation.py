"""What the arms are asked: the captions of the frozen evaluation set, and what a judge should see."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DataError
from components.evaluation_set import load_evaluation_set
from components.ingest.digit_world.scenes import label_arrays
from components.samples import read_samples


@dataclass(frozen=True)
class Evaluation:
    """`expected` is int64 [captions, 4, 2] (`label_arrays`), or `None` where no judge can read the images."""

    digest: str
    captions: list[str]
    expected: np.ndarray | None


def load_evaluation(folder: Path, unjudged_captions: int) -> Evaluation:
    """Read an `evaluation_set` artifact. The judge reads the digit world alone: of other data, only the first
    `unjudged_captions` are asked for.

    Raises `DigestMismatchError` where it is not the one that was frozen, `DataError` where it holds no captions.
    """
    frozen = load_evaluation_set(folder)
    rows = [row for row in read_samples(folder, ["text", "labels"]).to_pylist() if row["text"]]
    if not rows:
        raise DataError("the evaluation set holds no captions", where=str(folder), fix="run the ingest step again")
    captions = [row["text"] for row in rows]
    if frozen.rule == "caption_hash":
        return Evaluation(frozen.digest, captions, label_arrays([row["labels"] for row in rows]))
    return Evaluation(frozen.digest, captions[:unjudged_captions], None)

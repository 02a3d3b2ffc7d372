"""Reading images with the judge that the step `judge` left: an ONNX graph, so that nothing here learns."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import DigestMismatchError
from common.files import read_json, sha256_file
from components.ingest.digit_world.scenes import EMPTY
from components.record import Record

IMAGE_SIZE = 64
GRAPH_NAME, RECORD_NAME = "judge.onnx", "judge.json"
_BATCH = 128


class JudgeReport(Record):
    """How well the judge reads real scenes made of test digits: it bounds every accuracy measured with it."""

    digest: str
    accuracy: float
    digit_accuracy: float
    colour_accuracy: float
    position_accuracy: float
    scenes: int


class Correctness(Record):
    """What the judge found right in the arm's images: all captions in the order of `Measurements.captions` with their
    first seed, then all of them with their second, and so on."""

    digit: list[bool]
    colour: list[bool]
    position: list[bool]

    @property
    def correct(self) -> list[bool]:
        """Digit, colour and position all right."""
        return [d and c and p for d, c, p in zip(self.digit, self.colour, self.position, strict=True)]

    def share_by_caption(self, seeds_per_caption: int) -> list[float]:
        """For each caption the share of its seeds that came out right: captions are what is independent."""
        correct = self.correct
        captions = len(correct) // seeds_per_caption
        return [sum(correct[caption::captions]) / seeds_per_caption for caption in range(captions)]


@dataclass(frozen=True)
class Judge:
    """A judge's graph, and how well it reads real scenes of test digits."""

    graph: Path
    report: JudgeReport


def load_judge(folder: Path) -> Judge | None:
    """The judge of an artifact, `None` where it holds none because nobody can read such images.

    Raises `DigestMismatchError` where the graph is not the one that was measured.
    """
    record = read_json(folder / RECORD_NAME)
    if record is None:
        return None
    report = JudgeReport.model_validate(record)
    graph = folder / GRAPH_NAME
    if sha256_file(graph) != report.digest:
        raise DigestMismatchError("the judge is not the one that was measured", where=str(graph), fix="run it again")
    return Judge(graph, report)


def read(graph: Path, images: np.ndarray) -> np.ndarray:
    """What stands in each slot: uint8 images [n, 64, 64, 3] to int64 [n, 4, 2], digit and colour index, -1 where empty."""
    return look(graph, images)[0]


def features(graph: Path, images: np.ndarray) -> np.ndarray:
    """Where the judge sees images: uint8 [n, 64, 64, 3] to float32 [n, features]."""
    return look(graph, images)[1]


def look(graph: Path, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `read` and `features` give, in one pass."""
    import onnxruntime

    if images.dtype != np.uint8 or images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"the judge reads uint8 [n, {IMAGE_SIZE}, {IMAGE_SIZE}, 3], not {images.dtype} {images.shape}")
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    batches = [images[start : start + _BATCH] for start in range(0, max(len(images), 1), _BATCH)]
    answers = zip(*(session.run(None, {name: batch}) for batch in batches), strict=True)
    readings, seen = (np.concatenate([np.asarray(part) for part in answer]) for answer in answers)
    return readings, seen


def compare(readings: np.ndarray, expected: np.ndarray) -> Correctness:
    """Both int64 [n, 4, 2]. Position: exactly the right slots hold something; digit and colour: right in each of them."""
    occupied = expected[..., 0] != EMPTY
    same = readings == expected
    return Correctness(
        digit=(same[..., 0] | ~occupied).all(1).tolist(),
        colour=(same[..., 1] | ~occupied).all(1).tolist(),
        position=((readings[..., 0] != EMPTY) == occupied).all(1).tolist(),
    )

"""Where images are compared: the judge's features, the run's own tokenizer's, or those of an embedder of the user's."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import GateError
from common.files import sha256_file
from components.tokenize.table import captioned_images
from components.tokenize.tokenize import FEATURES_FILE

if TYPE_CHECKING:
    from components.judge.reading import Judge

_BATCH = 128


@dataclass(frozen=True)
class Embedder:
    """An ONNX graph whose last output are features of uint8 images [n, height, width, 3]."""

    graph: Path
    space: str
    """What it is, and its digest: distances are comparable within one space alone."""

    def features(self, images: np.ndarray) -> np.ndarray:
        """uint8 [n, height, width, 3] to float32 [n, features]. Raises `GateError` where the graph gives none."""
        import onnxruntime

        try:
            session = onnxruntime.InferenceSession(self.graph, providers=["CPUExecutionProvider"])
            name, output = session.get_inputs()[0].name, session.get_outputs()[-1].name
            parts = [session.run([output], {name: batch})[0] for batch in _batches(images)]
        except Exception as error:
            raise GateError(f"the embedder reads no images: {error}", where=str(self.graph)) from error
        seen = np.concatenate([np.asarray(part) for part in parts])
        if seen.ndim != 2 or len(seen) != len(images):
            raise GateError(f"the embedder gives {seen.shape}, not [images, features]", where=str(self.graph))
        return seen


def embedder(named: Path | None, judge: "Judge | None", tokenizers: Path) -> Embedder | None:
    """The user's own where one is named, else the judge where it reads the images, else the tokenizer; `None` where the
    tokenizers are older than their features. Raises `GateError` where the named one is not there."""
    if named is not None:
        if not named.is_file():
            raise GateError("there is no such embedder", where=str(named), fix="correct benchmark.embedder")
        return _of("file", named)
    if judge is not None:
        return _of("judge", judge.graph)
    graph = tokenizers / FEATURES_FILE
    return _of("tokenizer", graph) if graph.is_file() else None


def real_images(evaluation_set: Path, side: int) -> np.ndarray:
    """The evaluation set's own images at the generator's size: uint8 [n, side, side, 3]."""
    found = [each.images for each in captioned_images(evaluation_set, side, drop=lambda _id, _reason: None)]
    planes = np.concatenate(found) if found else np.empty((0, 3, side, side), np.uint8)
    return planes.transpose(0, 2, 3, 1)


def _of(kind: str, graph: Path) -> Embedder:
    return Embedder(graph, f"{kind}:{sha256_file(graph)[:12]}")


def _batches(images: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(images), _BATCH):
        yield np.ascontiguousarray(images[start : start + _BATCH])

"""Are the served stack's images as good as those of the decoder that it is compared with? Both are asked the same here."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.decoders import Decoder
from benchmarks.image_quality import Questions, paired_difference
from benchmarks.report import Check
from emuflow_client import GeneratorClient

_AT_ONCE = 16
_BATCH = 32
_EQUAL_POINTS = 1.0


def served_correct(endpoint: str, model: str, questions: Questions, seeds: int, judge: Path) -> np.ndarray:
    """Whether the judge reads what was asked for in each image that the server gives: float64 [seeds, captions]. Raises
    `GeneratorError` for one that does not come."""
    captions = [scene.caption for scene in questions.scenes] * seeds
    with GeneratorClient(endpoint, model=model) as client, ThreadPoolExecutor(_AT_ONCE) as pool:
        images = pool.map(lambda asked: client.generate(asked[1], seed=asked[0]).image, enumerate(captions))
        return questions.correct(judge, np.stack(list(images)))


def drawn_correct(decoder: Decoder, questions: Questions, seeds: int, judge: Path) -> np.ndarray:
    """The same of a decoder in this process, with the same prompts and seeds."""
    prompts = questions.prompts(seeds)
    batches = range(0, len(prompts), _BATCH)
    images = [
        decoder.draw(prompts[start : start + _BATCH], list(range(start, min(start + _BATCH, len(prompts)))))
        for start in batches
    ]
    return questions.correct(judge, np.concatenate(images))


def quality_check(served: np.ndarray, best_ar: np.ndarray) -> Check:
    """Accuracy of the stack minus that of the decoder, in points, paired by caption, with its 95% interval."""
    difference, interval = paired_difference(served, best_ar)
    return Check(
        "stack_accuracy_minus_best_ar",
        100 * difference,
        -_EQUAL_POINTS,
        0,
        served.size,
        low=100 * interval.low,
        high=100 * interval.high,
    )

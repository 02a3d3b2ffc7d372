"""What the arms' images are worth, read once the server has ended: by the judge, as a whole, by the user's own metrics."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.benchmark.arms import Images, Question
from components.benchmark.distance import frechet
from components.benchmark.embedding import Embedder, real_images
from components.benchmark.evaluation import Evaluation
from components.benchmark.measurements import FULL_PRECISION
from components.benchmark.own_metrics import Metric, MetricError, score
from components.benchmark.session import Session
from components.benchmark.settings import BenchmarkSettings

if TYPE_CHECKING:
    from components.judge.reading import Judge


def read_images(
    session: Session,
    settings: BenchmarkSettings,
    evaluation: Evaluation,
    questions: list[Question],
    judge: "Judge | None",
    embedder: Embedder | None,
    metrics: dict[str, Metric],
    evaluation_set: Path,
) -> None:
    """Add to the arms of `session` what can be read in their answers. A refused caption counts as a blank image.

    A metric of the user's that fails makes the measurement unusable, with what it said.
    """
    answered = ((name, _whole(answers)) for name, answers in session.answers.items())
    images = {name: pixels for name, pixels in answered if pixels is not None}
    if not images:
        return
    seen: dict[str, np.ndarray] = {}
    if judge is not None and evaluation.expected is not None:
        seen = _judge(session, images, evaluation.expected, judge)
    if embedder is not None:
        side = next(iter(images.values())).shape[1]
        real = embedder.features(real_images(evaluation_set, side))
        if judge is None or embedder.graph != judge.graph:
            seen = {name: embedder.features(pixels) for name, pixels in images.items() if name != FULL_PRECISION}
        distances = frechet(
            {name: features for name, features in seen.items() if name != FULL_PRECISION},
            real,
            len(evaluation.captions),
            space=embedder.space,
            resamples=settings.frechet_resamples,
            seed=settings.seed,
        )
        for name, distance in distances.items():
            session.add(name, frechet=distance)
    for name, pixels in images.items():
        try:
            captions = [question.caption for question in questions]
            session.add(name, scores={own: score(own, metric, pixels, captions) for own, metric in metrics.items()})
        except MetricError as error:
            session.reasons.append(str(error))
            return


def _judge(
    session: Session, images: dict[str, np.ndarray], expected: np.ndarray, judge: "Judge"
) -> dict[str, np.ndarray]:
    """Read every arm's images, and give where the judge sees them: float32 [n, features] of each arm."""
    from components.judge.reading import compare, look

    seen = {}
    for name, pixels in images.items():
        seeds = len(pixels) // len(expected)
        readings, seen[name] = look(judge.graph, pixels)
        session.add(name, correctness=compare(readings, np.tile(expected, (seeds, 1, 1))))
    return seen


def _whole(answers: Images) -> np.ndarray | None:
    """uint8 [n, height, width, 3], black in place of refusals; `None` where nothing was answered."""
    drawn = [image for image in answers if image is not None]
    if not drawn:
        return None
    black = np.zeros_like(drawn[0])
    return np.stack([black if image is None else image for image in answers])

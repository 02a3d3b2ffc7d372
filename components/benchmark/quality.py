"""What the arms' images are worth: by the judge, as a whole, by the user's own metrics.

The judge reads them while the captions are still asked, so that it can tell whether more answers would tell more; the rest
is taken once the server has ended.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from components.benchmark.arms import Images, Question
from components.benchmark.distance import frechet
from components.benchmark.embedding import Embedder, real_images
from components.benchmark.evaluation import Evaluation
from components.benchmark.looks import Standing, accuracy_loss_int8, accuracy_vs_champion, together
from components.benchmark.measurements import CANDIDATE, CHAMPION, FULL_PRECISION
from components.benchmark.own_metrics import Metric, MetricError, score
from components.benchmark.session import Answers, Session
from components.benchmark.settings import BenchmarkSettings, DecidingBounds
from components.judge.reading import compare, look

if TYPE_CHECKING:
    from components.judge.reading import Correctness, Judge


class Readings:
    """What a judge finds in the arms' answers, each of which it reads once."""

    def __init__(self, judge: "Judge", expected: np.ndarray):
        """`expected` is what each caption names, int64 [captions, 4, 2]."""
        self.judge, self._expected = judge, expected
        self._read: dict[str, np.ndarray] = {}
        self._seen: dict[str, np.ndarray] = {}

    def read(self, answers: Answers) -> None:
        """Read what came since the last time. A refused caption counts as a blank image, and an arm that drew nothing at all
        is not read."""
        for name, images in answers.items():
            pixels = _whole(images)
            if pixels is None:
                continue
            known = self._read.get(name)
            readings, seen = look(self.judge.graph, pixels if known is None else pixels[len(known) :])
            self._read[name] = readings if known is None else np.concatenate([known, readings])
            self._seen[name] = seen if known is None else np.concatenate([self._seen[name], seen])

    def correctness(self) -> "dict[str, Correctness]":
        """By arm."""
        return {
            name: compare(found, np.tile(self._expected, (self._seeds(name), 1, 1)))
            for name, found in self._read.items()
        }

    def seen(self) -> dict[str, np.ndarray]:
        """Where the judge sees the images: float32 [n, features] of each arm."""
        return dict(self._seen)

    def standing(self, bounds: DecidingBounds, answers: Answers) -> Standing:
        """What the answers so far say for sure of the candidate's accuracy."""
        self.read(answers)
        shares = {name: found.share_by_caption(self._seeds(name)) for name, found in self.correctness().items()}
        if CANDIDATE not in shares:
            return Standing.KEPT  # nobody looks at what was not drawn: no further answers
        ours, found = shares[CANDIDATE], []
        if CHAMPION in shares:
            found.append(accuracy_vs_champion(bounds, ours, shares[CHAMPION]))
        if FULL_PRECISION in shares:
            found.append(accuracy_loss_int8(bounds, ours, shares[FULL_PRECISION]))
        return together(found)

    def _seeds(self, name: str) -> int:
        return len(self._read[name]) // len(self._expected)


def read_images(
    session: Session,
    settings: BenchmarkSettings,
    evaluation: Evaluation,
    questions: list[Question],
    readings: Readings | None,
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
    if readings is not None:
        readings.read(session.answers)
        seen = readings.seen()
        for name, correctness in readings.correctness().items():
            session.add(name, correctness=correctness)
    if embedder is not None:
        side = next(iter(images.values())).shape[1]
        real = embedder.features(real_images(evaluation_set, side))
        if readings is None or embedder.graph != readings.judge.graph:
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


def _whole(answers: Images) -> np.ndarray | None:
    """uint8 [n, height, width, 3], black in place of refusals; `None` where nothing was answered."""
    drawn = [image for image in answers if image is not None]
    if not drawn:
        return None
    black = np.zeros_like(drawn[0])
    return np.stack([black if image is None else image for image in answers])

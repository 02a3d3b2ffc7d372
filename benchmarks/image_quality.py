"""How good a decoder's images are: what a judge reads in them, how they are spread, how much two seeds differ."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.benchmark.distance import Gaussian
from components.benchmark.statistics import Bootstrap, Interval
from components.ingest.digit_world.digits import load_split
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.render import render_scenes
from components.ingest.digit_world.scenes import Scene, all_scenes, label_arrays
from components.judge.reading import compare, features, read
from model.tokenizers.text import TextTokenizer

BOOTSTRAP = Bootstrap(confidence=0.95, resamples=2000, seed=0)
_REAL_SEED = 30_000_001


@dataclass(frozen=True)
class Questions:
    """Held-out captions, each asked with several seeds: all captions with their first, then all with their second."""

    scenes: list[Scene]
    text_ids: np.ndarray
    """int64 [captions, text_length]."""
    expected: np.ndarray
    """int64 [captions, 4, 2], what a judge should read."""

    @classmethod
    def of(
        cls, tokenizer: TextTokenizer, text_length: int, captions: int | None = None, *, held_out: bool = True
    ) -> "Questions":
        """Up to `captions` held-out captions, spread evenly over all; None asks all of them.

        Those that are not held out are for choosing settings: what is measured must not choose them.
        """
        scenes = [scene for scene in all_scenes() if is_evaluation_caption(scene.caption) == held_out]
        if captions is not None:
            scenes = [scenes[row] for row in np.linspace(0, len(scenes) - 1, captions).round().astype(int)]
        ids = np.array([tokenizer.encode_prompt(scene.caption, text_length) for scene in scenes])
        return cls(scenes, ids, label_arrays([scene.labels for scene in scenes]))

    def prompts(self, seeds: int) -> np.ndarray:
        return np.tile(self.text_ids, (seeds, 1))

    def correct(self, judge: Path, images: np.ndarray) -> np.ndarray:
        """Whether all is right in each image of [seeds * captions]: float64 [seeds, captions]."""
        seeds = len(images) // len(self.scenes)
        seen = compare(read(judge, images), np.tile(self.expected, (seeds, 1, 1)))
        return np.array(seen.correct, dtype=float).reshape(seeds, -1)

    def real(self, seeds: int) -> np.ndarray:
        """Real scenes of the captions, painted with digits that nobody learned from: uint8 [seeds * captions, …]."""
        digits = load_split("test")
        return render_scenes(digits.images, digits.labels, self.scenes * seeds, _REAL_SEED)


def accuracy_interval(correct: np.ndarray) -> Interval:
    """95% interval of the accuracy, [seeds, captions]: captions are what is independent."""
    return BOOTSTRAP.mean(correct.mean(0).tolist())


def paired_difference(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, Interval]:
    """Accuracy of `ours` minus `theirs` over the seeds that both have, paired by caption, with its 95% interval."""
    seeds = min(len(ours), len(theirs))
    differences = (ours[:seeds] - theirs[:seeds]).mean(0)
    return float(differences.mean()), BOOTSTRAP.mean(differences.tolist())


def variety(images: np.ndarray, captions: int) -> float:
    """Mean absolute difference of the pixels of two images of one caption, over all pairs and captions.

    `images` uint8 [seeds * captions, height, width, 3].
    """
    by_seed = images.reshape(-1, captions, *images.shape[1:])
    total, pairs = 0.0, 0
    for first in range(len(by_seed)):
        for second in range(first):
            # uint8 would wrap around; int16 holds every difference.
            total += float(np.abs(by_seed[first].astype(np.int16) - by_seed[second]).mean())
            pairs += 1
    return total / pairs


def seen_by(judge: Path, images: np.ndarray) -> Gaussian:
    """Where the judge sees images, uint8 [n, 64, 64, 3]: the mean and the covariance of its features."""
    return Gaussian.of(features(judge, images))

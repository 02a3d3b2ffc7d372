"""How good the answers of a story generator are: sketches become images, and the judge reads them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.image_quality import BOOTSTRAP
from benchmarks.stories import SceneTokens
from components.benchmark.statistics import Interval
from components.judge.reading import compare, read
from model.decoding.loop import unpack_blocks
from model.tokenizers.visual import VisualTokenizer
from model.transformer.model import FINE_PER_CELL, Generator
from model.transformer.story import LayerContext, StoryGenerator

Choose = Callable[[int], list[Tensor] | None]
"""The gates to use for all requests of a story, by its number: an item [1, heads, r * query_blocks, k] for each looking
layer; None lets the model decide."""
_BATCH = 64


@dataclass(frozen=True)
class Answers:
    """What a generator answered to every scene of every story asked for again, story by story."""

    sketches: Tensor
    """int64 [stories * scenes, cells]."""
    gates: list[list[Tensor]]
    """Of each story, as `Choose` gives them."""


@dataclass(frozen=True)
class Stories:
    """Stories of one length."""

    tokens: SceneTokens
    scenes: int

    def __len__(self) -> int:
        return len(self.tokens) // self.scenes

    def rows(self, story: int) -> slice:
        return slice(story * self.scenes, (story + 1) * self.scenes)

    def context(self, model: StoryGenerator, story: int) -> list[LayerContext]:
        rows = self.rows(story)
        return model.context(self.tokens.captions[rows][None], self.tokens.sketches[rows][None])

    def answers(self, model: StoryGenerator, choose: Choose) -> Answers:
        """Ask each story for each of its scenes, so all positions are asked for alike; the most likely code of a cell
        is its answer."""
        sketches, gates = [], []
        with torch.inference_mode():
            for story in range(len(self)):
                requests = self.tokens.requests[self.rows(story)][None]
                logits, used = model.ask(self.context(model, story), requests, choose(story))
                sketches.append(logits[0].argmax(-1))
                gates.append(used)
        return Answers(torch.cat(sketches), gates)


@dataclass(frozen=True)
class Painter:
    """Turns sketches into images: the details from the sketch alone, then the tokenizer's decoder."""

    details: Generator
    visual: VisualTokenizer
    prompt: list[int]

    def paint(self, sketches: Tensor) -> np.ndarray:
        """int64 [n, cells] -> uint8 [n, height, width, 3]."""
        with torch.inference_mode():
            return np.concatenate([self._paint(part) for part in sketches.split(_BATCH)])

    def _paint(self, sketches: Tensor) -> np.ndarray:
        text = torch.tensor(self.prompt).expand(len(sketches), -1)
        blank = torch.full((*sketches.shape, FINE_PER_CELL), self.details.config.visual_vocabulary)
        codes = self.details.fine_logits(self.details.prefill(text).past, sketches, blank).argmax(-1)
        grid = unpack_blocks(codes.numpy(), *self.details.config.coarse_grid)
        pixels = self.visual.decode(torch.from_numpy(np.ascontiguousarray(grid)))
        return ((pixels + 1) * 127.5).round().to(torch.uint8).movedim(1, -1).numpy()


def correct(judge: Path, images: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Whether digits, colours and places are all right: float64 [n]."""
    return np.array(compare(read(judge, images), expected).correct, dtype=float)


def mean_interval(by_story: np.ndarray) -> Interval:
    """95% interval of a mean over stories."""
    return BOOTSTRAP.mean(by_story.tolist())


def ratio_interval(top: np.ndarray, bottom: np.ndarray) -> Interval:
    """95% interval of the ratio of two means over the same stories."""
    return BOOTSTRAP.rate(top.tolist(), bottom.tolist())

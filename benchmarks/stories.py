"""Stories of the digit world as tokens: scenes that were painted and encoded once, and the documents made of them."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from components.ingest.digit_world.build import training_stories
from components.ingest.digit_world.digits import Split, load_split
from components.ingest.digit_world.holdout import is_evaluation_caption
from components.ingest.digit_world.render import render_scenes
from components.ingest.digit_world.scenes import COLOURS, Scene, label_arrays
from components.ingest.digit_world.settings import DigitWorldSettings
from components.ingest.digit_world.stories import first_glyph, request, story_specs
from components.tokenize.encode import encode_images
from model.tokenizers.bundle import TokenizerBundle
from model.tokenizers.text import TextTokenizer

_EVALUATION_SEED = 40_000_003
_PAINTING_SEED = 50_000_017


@dataclass(frozen=True)
class SceneTokens:
    """Scenes as a model reads them; row i of each is scene i."""

    captions: Tensor
    """int64 [n, text_length]."""
    requests: Tensor
    """int64 [n, text_length]: the scene asked for again."""
    sketches: Tensor
    """int64 [n, cells]."""
    details: Tensor
    """int64 [n, 4 * cells], the image's codes in raster order."""
    first: np.ndarray
    """int64 [n], a number for the first glyph: scenes of one story differ in it."""
    expected: np.ndarray
    """int64 [n, 4, 2], what a judge should read."""
    images: np.ndarray
    """uint8 [n, 64, 64, 3]."""

    def __len__(self) -> int:
        return len(self.captions)


def training_scenes(bundle: TokenizerBundle, text_length: int, stories: int) -> SceneTokens:
    """The scenes of the stories that `data.digit_world.stories` adds: no held-out caption, no test digit."""
    specs = training_stories(DigitWorldSettings(stories=stories))
    return encode_scenes(bundle, text_length, [scene for story in specs for scene in story.scenes], "generation")


def heldout_stories(bundle: TokenizerBundle, text_length: int, stories: int, scenes: int) -> SceneTokens:
    """Stories of held-out captions, painted with test digits: `stories * scenes` scenes, story by story."""
    specs = story_specs(stories, scenes, _EVALUATION_SEED, allowed=is_evaluation_caption, name="held-out")
    return encode_scenes(bundle, text_length, [scene for story in specs for scene in story.scenes], "test")


def encode_scenes(bundle: TokenizerBundle, text_length: int, scenes: list[Scene], split: Split) -> SceneTokens:
    """Paint the scenes with one split's digits and encode them."""
    digits = load_split(split)
    images = render_scenes(digits.images, digits.labels, scenes, _PAINTING_SEED)
    sketches, details = encode_images(bundle, np.ascontiguousarray(images.transpose(0, 3, 1, 2)), detail_stages=1)
    glyphs = [first_glyph(scene) for scene in scenes]
    return SceneTokens(
        captions=torch.tensor([encode_text(bundle.text, scene.caption, text_length) for scene in scenes]),
        requests=torch.tensor([encode_text(bundle.text, request(scene), text_length) for scene in scenes]),
        sketches=torch.from_numpy(sketches),
        details=torch.from_numpy(details),
        first=np.array([glyph.digit * len(COLOURS) + COLOURS.index(glyph.colour) for glyph in glyphs]),
        expected=label_arrays([scene.labels for scene in scenes]),
        images=images,
    )


def encode_text(tokenizer: TextTokenizer, text: str, text_length: int) -> list[int]:
    """`BOS text BOI PAD…`: a prompt with its padding behind, so that a text's first words stand in the same places."""
    prompt = tokenizer.encode_prompt(text, text_length)
    start = prompt.index(tokenizer.special["bos"])
    return prompt[start:] + prompt[:start]


class Dealer:
    """Deals stories from a pool of scenes: no two scenes of a story begin with the same glyph."""

    def __init__(self, first: np.ndarray, seed: int):
        self._of_glyph = [np.flatnonzero(first == glyph) for glyph in np.unique(first)]
        self._random = np.random.Generator(np.random.PCG64([seed, 5]))

    def deal(self, stories: int, scenes: int) -> np.ndarray:
        """Rows of the pool: int64 [stories, scenes]."""
        return np.stack([self._story(scenes) for _ in range(stories)])

    def ask(self, stories: int, scenes: int, requests: int) -> np.ndarray:
        """Which scenes are asked for, uniformly and none twice: positions int64 [stories, requests]."""
        return np.stack([self._random.permutation(scenes)[:requests] for _ in range(stories)])

    def _story(self, scenes: int) -> np.ndarray:
        glyphs = self._random.permutation(len(self._of_glyph))[:scenes]
        return np.array([self._random.choice(self._of_glyph[glyph]) for glyph in glyphs])

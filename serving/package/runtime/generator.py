"""A package, loaded: prompt in, images out. Triton's model and the tests in process use this same class."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .decoding.loop import DecodingOptions, generate, takes_noise_alone
from .engine import EngineSession
from .graphs import Load
from .requests import Limits, Request, RequestError
from .shape import sizes
from .text import TextTokenizer

_ONE_PASS: dict[str, Any] = {"coarse_steps": 1, "guidance": 1.0, "previews": False}
"""What a request asks for that is to be drawn in one call."""


@dataclass(frozen=True)
class Image:
    """What one finished stage gives."""

    stage: str
    """`coarse`, `fine`, `fine2`, ... are previews; `final`."""
    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    timings_ms: dict[str, float]
    """Milliseconds since the request came, by stage; `queue` is when its drawing began."""


@dataclass(frozen=True)
class Prepared:
    """A request whose prompt was read; those with equal `options` can be drawn together."""

    text_ids: np.ndarray
    """int64 [1, text_length]."""
    options: DecodingOptions
    seed: int
    arrived: float
    """When, by `time.perf_counter`."""
    deadline: float | None = None
    """When it is too late for an answer, by `time.perf_counter`."""

    @property
    def too_late(self) -> bool:
        return self.deadline is not None and time.perf_counter() > self.deadline


class Generator:
    """The model of one package version folder (`1/`)."""

    def __init__(self, folder: Path, load: Load | None = None):
        """Load `folder/{generator.json, tokenizer.json, engine/}`; the graphs by `load`, without it in this process."""
        config = json.loads((folder / "generator.json").read_text())
        runtime = config["runtime"]
        self.limits = Limits(**runtime["limits"])
        self.largest_group: int = runtime["largest_group"]
        self.largest_queue: int = runtime["largest_queue"]
        self.options = DecodingOptions(**config["decoding"])
        self._text_length: int = config["text_length"]
        self._special: dict[str, int] = config["special"]
        # A model that never read the prompt which says nothing has no unconditional answer to guide away from.
        self._unconditional = self._prompt([self._special["uncond"]])[0] if config["unconditional_share"] > 0 else None
        self._sizes = sizes(config)
        self._tokenizer = TextTokenizer.load(folder / "tokenizer.json")
        self._session = EngineSession(
            folder / "engine",
            config,
            threads=runtime["threads"],
            provider=runtime["provider"],
            prefix_cache_bytes=runtime["prefix_cache_bytes"],
            load=load,
        )
        # A swap puts another package in this one's place while this one still answers.
        if takes_noise_alone(replace(self.options, **_ONE_PASS)):
            self._session.load_draw()

    def prompt_ids(self, prompt: str) -> np.ndarray:
        """`PAD... BOS text BOI`, int64 [1, text_length]. Raises `RequestError` for a prompt that does not fit."""
        text = self._tokenizer.encode(prompt)
        room = self._text_length - 2
        if len(text) > room:
            raise RequestError(f"'prompt' has {len(text)} tokens, more than {room}")
        return self._prompt(text)

    def _prompt(self, text: list[int]) -> np.ndarray:
        padding = [self._special["pad"]] * (self._text_length - 2 - len(text))
        return np.array([[*padding, self._special["bos"], *text, self._special["boi"]]], dtype=np.int64)

    def prepare(self, request: Request) -> Prepared:
        """Raises `RequestError` for a prompt that does not fit, and for what this model cannot do."""
        arrived = time.perf_counter()
        asked = {
            "coarse_steps": request.coarse_steps,
            "temperature": request.temperature,
            "guidance": request.guidance,
            "previews": request.previews,
            "detail_stages": None if request.size is None else self._stages_of(request.size),
        }
        options = replace(self.options, **{name: value for name, value in asked.items() if value is not None})
        if options.guidance != 1 and self._unconditional is None:
            raise RequestError(
                f"'guidance' is {options.guidance:g}, but this model was trained with a prompt for every image and knows "
                "no answer without one: leave it out, or serve a model trained with "
                "training.masking.unconditional_share above 0"
            )
        deadline = None if request.deadline_ms is None else arrived + request.deadline_ms / 1000
        return Prepared(self.prompt_ids(request.prompt), options, request.seed, arrived, deadline)

    def _stages_of(self, size: tuple[int, int]) -> int:
        """How many stages of details an image of this size takes. Raises `RequestError` for a size that there is not."""
        if size in self._sizes:
            return self._sizes[size]
        names = " or ".join(f"{height}x{width}" for height, width in self._sizes)
        raise RequestError(f"'size' is {size[0]}x{size[1]}, but this model draws {names}")

    def images(self, request: Request) -> Iterator[Image]:
        """Draw the image of `request` and yield each stage as it is done, the final one last."""
        for (image,) in self.draw([self.prepare(request)]):
            yield image

    def draw(self, group: Sequence[Prepared]) -> Iterator[list[Image]]:
        """Draw a group of equal options; yield each stage of all images at once, in the group's order."""
        text_ids = np.concatenate([one.text_ids for one in group])
        seeds = [one.seed for one in group]
        began = time.perf_counter()
        timings = [{"queue": round(1000 * (began - one.arrived), 3)} for one in group]
        for stage in generate(self._session, text_ids, group[0].options, seeds, self._unconditional):
            now = time.perf_counter()
            for one, own in zip(group, timings, strict=True):
                own[stage.name] = round(1000 * (now - one.arrived), 3)
            yield [Image(stage.name, pixels, dict(own)) for pixels, own in zip(stage.pixels, timings, strict=True)]

    def check(self) -> None:
        """Draw an image with previews, and one that is drawn at once where the package can do so. Raises `ValueError` where
        one is not what `generator.json` says."""
        expected = (*next(iter(self._sizes)), 3)
        default = Request("a", seed=0, coarse_steps=None, temperature=None, previews=True)
        for request in (default, replace(default, **_ONE_PASS)):
            *_, final = self.images(request)
            _check(final, expected)


def _check(final: Image, expected: tuple[int, int, int]) -> None:
    if final.stage != "final" or final.pixels.shape != expected or final.pixels.dtype != np.uint8:
        raise ValueError(f"the engine drew {final.pixels.dtype} {final.pixels.shape}, not uint8 {expected}")

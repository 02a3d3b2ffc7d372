"""A package, loaded: prompt in, images out. Triton's model and the tests in process use this same class."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .decoding.loop import DecodingOptions, generate
from .engine import EngineSession
from .requests import Limits, Request, RequestError
from .text import TextTokenizer


@dataclass(frozen=True)
class Image:
    """What one finished stage gives."""

    stage: str
    """`coarse` (a preview) or `final`."""
    pixels: np.ndarray
    """uint8 [height, width, 3]."""
    timings_ms: dict[str, float]
    """Milliseconds since the request was taken up, by stage."""


class Generator:
    """The model of one package version folder (`1/`)."""

    def __init__(self, folder: Path):
        """Load `folder/{generator.json, tokenizer.json, engine/}`."""
        config = json.loads((folder / "generator.json").read_text())
        runtime = config["runtime"]
        self.limits = Limits(**runtime["limits"])
        self.options = DecodingOptions(**config["decoding"])
        self._text_length: int = config["text_length"]
        self._special: dict[str, int] = config["special"]
        self._unconditional = self._prompt([self._special["uncond"]])[0] if self.options.guidance != 1 else None
        self._image_shape = (*config["image_size"], 3)
        self._tokenizer = TextTokenizer.load(folder / "tokenizer.json")
        self._session = EngineSession(folder / "engine", config, threads=runtime["threads"])

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

    def images(self, request: Request) -> Iterator[Image]:
        """Draw the image of `request` and yield each stage as it is done, the final one last."""
        start = time.perf_counter()
        text_ids = self.prompt_ids(request.prompt)
        asked = {"coarse_steps": request.coarse_steps, "temperature": request.temperature}
        options = replace(self.options, **{name: value for name, value in asked.items() if value is not None})
        timings: dict[str, float] = {}
        for stage in generate(self._session, text_ids, options, [request.seed], self._unconditional):
            timings[stage.name] = round(1000 * (time.perf_counter() - start), 3)
            yield Image(stage.name, stage.pixels[0], dict(timings))

    def check(self) -> None:
        """Draw one image through every graph. Raises `ValueError` where it is not what `generator.json` says."""
        images = list(self.images(Request("a", seed=0, coarse_steps=None, temperature=None)))
        final = images[-1]
        if final.stage != "final" or final.pixels.shape != self._image_shape or final.pixels.dtype != np.uint8:
            raise ValueError(
                f"the engine drew {final.pixels.dtype} {final.pixels.shape}, not uint8 {self._image_shape}"
            )

"""One arm of a benchmark: a package behind the server, asked over gRPC like any client would."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from common.errors import DigestMismatchError
from common.files import files_under
from components.benchmark.measurements import Warmup
from components.benchmark.settings import WarmupSettings
from emuflow_client import AsyncGeneratorClient, GeneratorClient, InvalidRequest, Result

_MAY_NOT = "may not draw"
"""What a package says of a prompt that its blocked patterns refuse, and of no other one (`runtime/requests.py`)."""


@dataclass(frozen=True)
class Question:
    """A caption with the seed that every arm answers it with."""

    caption: str
    seed: int


@dataclass(frozen=True)
class Timed:
    """Milliseconds of one request."""

    image_ms: float
    """From the request to the final image in this process."""
    server_ms: float
    """From its coming to the final image, as the package says."""


Images = list[np.ndarray | None]
"""One for each question, uint8 [H, W, 3], `None` where the generator refused it."""


class ArmClient:
    """Asks one package and refuses answers of any other."""

    def __init__(self, name: str, package: Path, digest: str, endpoint: str, timeout_s: float):
        self.name, self.package, self.digest = name, package, digest
        self._endpoint, self._timeout_s = endpoint, timeout_s
        self._client = GeneratorClient(endpoint, model=name, timeout_s=timeout_s, retries=0)

    def ask(self, question: Question) -> np.ndarray:
        """The image, uint8 [H, W, 3]. Raises `DigestMismatchError` where another package answered."""
        return self.check(self._client.generate(question.caption, seed=question.seed)).image

    def timed(self, question: Question) -> Timed:
        """One request for the image alone."""
        started = time.perf_counter()
        answer = self.check(self._client.generate(question.caption, seed=question.seed))
        return Timed(1000 * (time.perf_counter() - started), answer.timings["final"])

    def preview_ms(self, question: Question) -> float:
        """Milliseconds from a request with previews to its first stage in this process."""
        started = time.perf_counter()
        stages = self._client.stream(question.caption, seed=question.seed, previews=True)
        self.check(next(stages))
        first_ms = 1000 * (time.perf_counter() - started)
        for _ in stages:  # to its end: the server is idle when the next request comes
            pass
        return first_ms

    def refuses(self, prompt: str) -> bool:
        """Whether the package refuses this prompt for what it asks: one that is only too long is not refused for that."""
        try:
            self.ask(Question(prompt, seed=0))
        except InvalidRequest as error:
            return _MAY_NOT in str(error)
        return False

    def ask_or_none(self, question: Question) -> np.ndarray | None:
        """The image, `None` where the package refuses to draw it."""
        try:
            return self.ask(question)
        except InvalidRequest:
            return None

    async def ask_all(self, questions: Sequence[Question], at_once: int, client: AsyncGeneratorClient) -> Images:
        """Every question, so many of them at the same time, by a client that `asynchronous` gave: it takes half the
        processor time of as many threads, which on a small machine is the server's."""
        images: Images = [None] * len(questions)
        left = iter(enumerate(questions))

        async def ask_one_after_another() -> None:
            for place, question in left:
                with suppress(InvalidRequest):
                    images[place] = self.check(await client.generate(question.caption, seed=question.seed)).image

        await asyncio.gather(*(ask_one_after_another() for _ in range(at_once)))
        return images

    def warm_up(self, settings: WarmupSettings, questions: Sequence[Question]) -> Warmup:
        """Ask until the median of a window of requests no longer moves, or the windows are used up."""
        medians: list[float] = []
        stable = False
        while not stable and len(medians) < settings.max_windows:
            start = len(medians) * settings.window_requests
            window = [questions[i % len(questions)] for i in range(start, start + settings.window_requests)]
            medians.append(median(self.timed(question).image_ms for question in window))
            stable = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= settings.tolerance
        return Warmup(requests=len(medians) * settings.window_requests, window_p50_ms=medians, stable=stable)

    @property
    def package_bytes(self) -> int:
        return sum(path.stat().st_size for path in files_under(self.package))

    def asynchronous(self) -> AsyncGeneratorClient:
        """A client of the same model for many requests at once; its answers are for `check`."""
        return AsyncGeneratorClient(self._endpoint, model=self.name, timeout_s=self._timeout_s, retries=0)

    def check(self, result: Result) -> Result:
        """The result itself. Raises `DigestMismatchError` where another package answered."""
        if result.version != self.digest:
            raise DigestMismatchError(
                f"package {result.version} answered for {self.digest}", where=f"model '{self.name}'"
            )
        return result

    def close(self) -> None:
        self._client.close()

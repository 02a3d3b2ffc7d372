"""One arm of a benchmark: a package behind the server, asked over gRPC like any client would."""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from common.errors import DigestMismatchError
from common.files import files_under
from components.benchmark.measurements import Warmup
from components.benchmark.settings import WarmupSettings
from emuflow_client import GeneratorClient, InvalidRequest


@dataclass(frozen=True)
class Question:
    """A caption with the seed that every arm answers it with."""

    caption: str
    seed: int


Images = list[np.ndarray | None]
"""One for each question, uint8 [H, W, 3], `None` where the generator refused it."""


class ArmClient:
    """Asks one package and refuses answers of any other."""

    def __init__(self, name: str, package: Path, digest: str, endpoint: str, timeout_s: float):
        self.name, self.package, self.digest = name, package, digest
        self._client = GeneratorClient(endpoint, model=name, timeout_s=timeout_s, retries=0)

    def ask(self, question: Question) -> np.ndarray:
        """The image, uint8 [H, W, 3]. Raises `DigestMismatchError` where another package answered."""
        result = self._client.generate(question.caption, seed=question.seed)
        if result.version != self.digest:
            raise DigestMismatchError(
                f"package {result.version} answered for {self.digest}", where=f"model '{self.name}'"
            )
        return result.image

    def time_ms(self, question: Question) -> float:
        """Milliseconds from the request to the final image in this process."""
        started = time.perf_counter()
        self.ask(question)
        return (time.perf_counter() - started) * 1000

    def ask_all(self, questions: Sequence[Question], clients: Executor) -> Images:
        """Every question, by as many at the same time as `clients` has threads."""
        return list(clients.map(self._ask_or_none, questions))

    def warm_up(self, settings: WarmupSettings, questions: Sequence[Question]) -> Warmup:
        """Ask until the median of a window of requests no longer moves, or the windows are used up."""
        medians: list[float] = []
        stable = False
        while not stable and len(medians) < settings.max_windows:
            start = len(medians) * settings.window_requests
            window = [questions[i % len(questions)] for i in range(start, start + settings.window_requests)]
            medians.append(median(self.time_ms(question) for question in window))
            stable = len(medians) > 1 and abs(medians[-1] / medians[-2] - 1) <= settings.tolerance
        return Warmup(requests=len(medians) * settings.window_requests, window_p50_ms=medians, stable=stable)

    @property
    def package_bytes(self) -> int:
        return sum(path.stat().st_size for path in files_under(self.package))

    def close(self) -> None:
        self._client.close()

    def _ask_or_none(self, question: Question) -> np.ndarray | None:
        try:
            return self.ask(question)
        except InvalidRequest:
            return None

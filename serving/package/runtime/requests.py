"""One request: every field checked before any of it is used.

Triton itself refuses a wrong dtype or rank. What reaches this file has the declared types and may still hold any
value at all.
"""

import math
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_SEED_BITS = 53
"""A random seed stays exact where a program keeps it as a JSON number."""


class RequestError(Exception):
    """The request cannot be answered as it stands. The message begins with its typed prefix."""

    def __init__(self, message: str):
        super().__init__(f"INVALID_ARGUMENT: {message}")


@dataclass(frozen=True)
class Limits:
    """The largest request that a package answers."""

    max_prompt_bytes: int
    max_coarse_steps: int
    max_temperature: float


@dataclass(frozen=True)
class Request:
    """A checked request. `None` stands for the package's own setting."""

    prompt: str
    seed: int
    coarse_steps: int | None
    temperature: float | None


def parse(fields: Mapping[str, np.ndarray | None], limits: Limits) -> Request:
    """Check the tensors of one request, by input name (`None` where absent). Raises `RequestError`."""
    return Request(
        prompt=_prompt(fields.get("prompt"), limits.max_prompt_bytes),
        seed=_seed(fields.get("seed")),
        coarse_steps=_coarse_steps(fields.get("coarse_steps"), limits.max_coarse_steps),
        temperature=_temperature(fields.get("temperature"), limits.max_temperature),
    )


def _single(name: str, tensor: np.ndarray, kind: str) -> Any:
    if tensor.shape != (1,) or tensor.dtype.kind not in kind:
        raise RequestError(f"'{name}' must hold one value of its declared type, not {tensor.dtype} {tensor.shape}")
    return tensor[0]


def _prompt(tensor: np.ndarray | None, max_bytes: int) -> str:
    if tensor is None:
        raise RequestError("'prompt' is missing")
    content = _single("prompt", tensor, "OS")
    if not isinstance(content, bytes):
        raise RequestError("'prompt' must be BYTES")
    if len(content) > max_bytes:
        raise RequestError(f"'prompt' has {len(content)} bytes, more than {max_bytes}")
    try:
        prompt = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"'prompt' is not UTF-8 (byte {error.start})") from None
    if not prompt.strip():
        raise RequestError("'prompt' is empty")
    return prompt


def _seed(tensor: np.ndarray | None) -> int:
    if tensor is None:
        return secrets.randbits(_SEED_BITS)
    seed = int(_single("seed", tensor, "i"))
    if seed < 0:
        raise RequestError(f"'seed' is {seed}, below 0")
    return seed


def _coarse_steps(tensor: np.ndarray | None, largest: int) -> int | None:
    if tensor is None:
        return None
    steps = int(_single("coarse_steps", tensor, "i"))
    if not 1 <= steps <= largest:
        raise RequestError(f"'coarse_steps' is {steps}, outside 1..{largest}")
    return steps


def _temperature(tensor: np.ndarray | None, largest: float) -> float | None:
    if tensor is None:
        return None
    temperature = float(_single("temperature", tensor, "f"))
    if not (math.isfinite(temperature) and 0 <= temperature <= largest):
        raise RequestError(f"'temperature' is {temperature}, outside 0..{largest:g}")
    return temperature

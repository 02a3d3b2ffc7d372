"""One request: every field checked before any of it is used.

Triton itself refuses a wrong dtype or rank. What reaches this file has the declared types and may still hold any
value at all.
"""

import math
import re
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

Format = Literal["raw", "png"]
FORMATS: tuple[Format, ...] = get_args(Format)
_SEED_BITS = 53
"""A random seed stays exact where a program keeps it as a JSON number."""


class RequestError(Exception):
    """The request cannot be answered as it stands. The message begins with its typed prefix."""

    def __init__(self, message: str):
        super().__init__(f"INVALID_ARGUMENT: {message}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The largest request that a package answers."""

    max_prompt_bytes: int
    max_coarse_steps: int
    max_temperature: float
    max_guidance: float
    max_deadline_ms: int
    blocked_patterns: tuple[str, ...] = ()
    """Regular expressions; a prompt in which one is found is refused. They see it in lower case, in Unicode's
    compatibility form and without characters that have no width, and so do not care how it was written."""


@dataclass(frozen=True)
class Request:
    """A checked request. `None` stands for the package's own setting."""

    prompt: str
    seed: int
    coarse_steps: int | None
    temperature: float | None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    """Height and width."""
    format: Format = "raw"
    """`raw` pixels, or the bytes of a `png` file."""
    deadline_ms: int | None = None
    """Milliseconds after its coming at which no answer is wanted any more; None is never."""
    previews: bool | None = None


def parse(
    fields: Mapping[str, np.ndarray | None], limits: Limits, parameters: Mapping[str, object] | None = None
) -> Request:
    """Check the tensors of one request, by input name (`None` where absent), and its parameters. Raises `RequestError`."""
    return Request(
        prompt=_prompt(fields.get("prompt"), limits),
        seed=_seed(fields.get("seed")),
        coarse_steps=_whole("coarse_steps", fields.get("coarse_steps"), limits.max_coarse_steps),
        temperature=_real("temperature", fields.get("temperature"), limits.max_temperature),
        guidance=_real("guidance", fields.get("guidance"), limits.max_guidance),
        size=_size(fields.get("size")),
        format=_format(fields.get("format")),
        deadline_ms=_whole("deadline_ms", fields.get("deadline_ms"), limits.max_deadline_ms),
        previews=_flag("previews", (parameters or {}).get("previews")),
    )


def _single(name: str, tensor: np.ndarray, kind: str) -> Any:
    if tensor.shape != (1,) or tensor.dtype.kind not in kind:
        raise RequestError(f"'{name}' must hold one value of its declared type, not {tensor.dtype} {tensor.shape}")
    return tensor[0]


def _prompt(tensor: np.ndarray | None, limits: Limits) -> str:
    if tensor is None:
        raise RequestError("'prompt' is missing")
    content = _single("prompt", tensor, "OS")
    if not isinstance(content, bytes):
        raise RequestError("'prompt' must be BYTES")
    if len(content) > limits.max_prompt_bytes:
        raise RequestError(f"'prompt' has {len(content)} bytes, more than {limits.max_prompt_bytes}")
    try:
        prompt = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"'prompt' is not UTF-8 (byte {error.start})") from None
    if not prompt.strip():
        raise RequestError("'prompt' is empty")
    plain = _plain(prompt) if limits.blocked_patterns else ""
    if any(re.search(pattern, plain) for pattern in limits.blocked_patterns):
        raise RequestError("'prompt' asks for what this model may not draw")
    return prompt


def _plain(text: str) -> str:
    """As blocked patterns see it: full-width letters are letters, and an invisible one in a word hides nothing."""
    visible = (each for each in unicodedata.normalize("NFKC", text) if unicodedata.category(each) != "Cf")
    return "".join(visible).lower()


def _seed(tensor: np.ndarray | None) -> int:
    if tensor is None:
        return secrets.randbits(_SEED_BITS)
    seed = int(_single("seed", tensor, "i"))
    if seed < 0:
        raise RequestError(f"'seed' is {seed}, below 0")
    return seed


def _whole(name: str, tensor: np.ndarray | None, largest: int) -> int | None:
    if tensor is None:
        return None
    value = int(_single(name, tensor, "i"))
    if not 1 <= value <= largest:
        raise RequestError(f"'{name}' is {value}, outside 1..{largest}")
    return value


def _real(name: str, tensor: np.ndarray | None, largest: float) -> float | None:
    if tensor is None:
        return None
    value = float(_single(name, tensor, "f"))
    if not (math.isfinite(value) and 0 <= value <= largest):
        raise RequestError(f"'{name}' is {value}, outside 0..{largest:g}")
    return value


def _flag(name: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    raise RequestError(f"the parameter '{name}' is {value!r}, neither true nor false")


def _size(tensor: np.ndarray | None) -> tuple[int, int] | None:
    """Whether the model has this size is for the model to say."""
    if tensor is None:
        return None
    if tensor.shape != (2,) or tensor.dtype.kind != "i":
        raise RequestError(f"'size' must hold a height and a width, not {tensor.dtype} {tensor.shape}")
    height, width = tensor.tolist()
    return height, width


def _format(tensor: np.ndarray | None) -> Format:
    if tensor is None:
        return "raw"
    content = _single("format", tensor, "OS")
    for known in FORMATS:
        if content == known.encode():
            return known
    raise RequestError(f"'format' is none of {', '.join(FORMATS)}")

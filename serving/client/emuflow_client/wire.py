"""Triton's gRPC messages for one prompt and its stages."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import numpy as np
import tritonclient.grpc.service_pb2

from emuflow_client.errors import InvalidRequest, ServerFault

_messages: Any = tritonclient.grpc.service_pb2
"""Its classes are made at import, where no type checker sees them."""

OUTPUTS = ("stage", "final", "package_digest", "seed", "timings")
"""In every response, beside the image."""
Format = Literal["raw", "png"]
_IMAGES: dict[Format, str] = {"raw": "image", "png": "encoded"}
"""The output that holds the image."""
_NUMBERS = {
    "seed": ("INT64", "<q"),
    "coarse_steps": ("INT32", "<i"),
    "temperature": ("FP32", "<f"),
    "guidance": ("FP32", "<f"),
    "deadline_ms": ("INT64", "<q"),
}
"""Inputs of one number: their type, and its form in `struct`."""


class Options(TypedDict, total=False):
    """What a request may ask for beside its prompt; what is left out, or `None`, is the package's own."""

    seed: int | None
    """Without one the server draws one and returns it."""
    coarse_steps: int | None
    temperature: float | None
    guidance: float | None
    size: tuple[int, int] | None
    """Height and width, one of those that the model draws; without it, the largest."""
    format: Format | None
    """`png` gives the bytes of a file (`Result.png`) in place of pixels."""
    deadline_ms: int | None
    """The server itself gives the request up so long after it came, however many others wait."""
    previews: bool | None
    """Whether earlier stages are sent, too; the image itself comes sooner without."""


@dataclass(frozen=True)
class Result:
    """An image, and what made it."""

    pixels: np.ndarray | None
    """uint8 [height, width, 3], the caller's own to write to; None where a PNG was asked for."""
    png: bytes | None
    """A PNG file, where one was asked for."""
    stage: str
    """`coarse` for a preview (a smaller sketch), `fine`, `fine2`, ... for those of further stages, `final` for the image."""
    version: str
    """Digest of the model package that answered."""
    seed: int
    """The same prompt, seed and version give the same image again."""
    timings: dict[str, float]
    """Milliseconds on the server until each stage was done; `queue` is until the drawing began."""

    @property
    def image(self) -> np.ndarray:
        """`pixels`. Raises `ValueError` where a PNG was asked for: it is `png`."""
        if self.pixels is None:
            raise ValueError("this answer is a PNG file: read `png`, or ask without format")
        return self.pixels

    @property
    def final(self) -> bool:
        return self.stage == "final"


def encode(model: str, prompt: str, options: Options) -> Any:
    """The `ModelInferRequest`. Raises `InvalidRequest` for a value that its type on the wire cannot hold.

    What is not asked for is not sent: a package that is older than an input answers requests without it.
    """
    unknown = options.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"a request has no {', '.join(sorted(unknown))}; it has {', '.join(Options.__annotations__)}")
    format, size = options.get("format"), options.get("size")
    format = "raw" if format is None else format
    if format not in _IMAGES:
        raise InvalidRequest(f"format cannot be {format!r}, only {' or '.join(_IMAGES)}")
    request = _messages.ModelInferRequest(model_name=model)
    _add(request, "prompt", "BYTES", _encode_prompt(prompt))
    for name, (datatype, layout) in _NUMBERS.items():
        value = options.get(name)
        if value is not None:
            _add(request, name, datatype, _pack(name, layout, value))
    if size is not None:
        _add(request, "size", "INT32", _pack_size(size), [2])
    if format != "raw":
        _add(request, "format", "BYTES", _bytes(format.encode()))
    previews = options.get("previews")
    if previews is not None:  # a parameter and no input: a package that knows nothing of it answers all the same
        request.parameters["previews"].bool_param = bool(previews)
    request.outputs.extend(
        _messages.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in (_IMAGES[format], *OUTPUTS)
    )
    return request


def without_previews(options: Options) -> Options:
    """The same options, for who takes the image alone and does not say."""
    return {"previews": False, **options}


def decode(response: Any) -> Result:
    """One stage, from a `ModelInferResponse`. Raises `ServerFault` where the response is not of this contract."""
    try:
        return _result(response)
    except (ValueError, struct.error) as error:  # of JSON, of UTF-8, of shapes
        raise ServerFault(f"the response of model '{response.model_name}' cannot be read: {error}") from error


def _result(response: Any) -> Result:
    """Raises `ValueError` and `struct.error` for contents that are not what their names say."""
    contents = {
        output.name: (list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    missing = [name for name in OUTPUTS if name not in contents]
    if not any(name in contents for name in _IMAGES.values()):
        missing.append(" or ".join(_IMAGES.values()))
    if missing:
        raise ServerFault(f"the response of model '{response.model_name}' lacks {', '.join(missing)}")
    pixels, png = contents.get("image"), contents.get("encoded")
    return Result(
        pixels=None if pixels is None else _pixels(*pixels),
        png=None if png is None else _single(png[1]),
        stage=_text(contents["stage"][1]),
        version=_text(contents["package_digest"][1]),
        seed=struct.unpack("<q", contents["seed"][1])[0],
        timings=_timings(contents["timings"][1]),
    )


def _pixels(shape: list[int], raw: bytes) -> np.ndarray:
    """An image that can be written to; a view of `raw` could not."""
    if len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise ValueError(f"an image of the shape {shape}")
    return np.frombuffer(raw, dtype=np.uint8).reshape(shape).copy()


def _timings(raw: bytes) -> dict[str, float]:
    timings = json.loads(_text(raw))
    if not isinstance(timings, dict):
        raise ValueError(f"timings that are no object: {timings!r}")
    return timings


def _encode_prompt(prompt: str) -> bytes:
    try:
        content = prompt.encode("utf-8")
    except (UnicodeEncodeError, AttributeError):
        raise InvalidRequest("the prompt must be a string of valid Unicode") from None
    return _bytes(content)


def _pack_size(size: tuple[int, int]) -> bytes:
    try:
        return struct.pack("<ii", *size)
    except (struct.error, TypeError):
        raise InvalidRequest(f"size cannot be {size!r}: it is a height and a width") from None


def _bytes(content: bytes) -> bytes:
    """A BYTES tensor of one value: a uint32 length, then the bytes."""
    return struct.pack("<I", len(content)) + content


def _pack(name: str, layout: str, value: Any) -> bytes:
    try:
        return struct.pack(layout, value)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"{name} cannot be {value!r}") from None


def _add(request: Any, name: str, datatype: str, content: bytes, shape: Sequence[int] = (1,)) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=shape)
    request.raw_input_contents.append(content)


def _single(raw: bytes) -> bytes:
    """The one value of a BYTES tensor: a uint32 length, then so many bytes."""
    (length,) = struct.unpack_from("<I", raw)
    if len(raw) != 4 + length:
        raise ValueError(f"{length} bytes are told and {len(raw) - 4} are there")
    return raw[4:]


def _text(raw: bytes) -> str:
    return _single(raw).decode("utf-8")

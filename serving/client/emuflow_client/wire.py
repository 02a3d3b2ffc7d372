"""Triton's gRPC messages for one prompt and its stages."""

import json
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc.service_pb2

from emuflow_client.errors import InvalidRequest, ServerFault

_messages: Any = tritonclient.grpc.service_pb2
"""Its classes are made at import, where no type checker sees them."""

OUTPUTS = ("image", "stage", "final", "package_digest", "seed", "timings")


@dataclass(frozen=True)
class Result:
    """An image, and what made it."""

    image: np.ndarray
    """uint8 [height, width, 3]."""
    stage: str
    """`coarse` for a preview (a smaller sketch), `final` for the image."""
    version: str
    """Digest of the model package that answered."""
    seed: int
    """The same prompt, seed and version give the same image again."""
    timings: dict[str, float]
    """Milliseconds on the server until each stage was done."""

    @property
    def final(self) -> bool:
        return self.stage == "final"


def encode(model: str, prompt: str, seed: int | None, coarse_steps: int | None, temperature: float | None) -> Any:
    """The `ModelInferRequest`. Raises `InvalidRequest` for a value that its type on the wire cannot hold."""
    request = _messages.ModelInferRequest(model_name=model)
    _add(request, "prompt", "BYTES", _encode_prompt(prompt))
    for name, datatype, layout, value in (
        ("seed", "INT64", "<q", seed),
        ("coarse_steps", "INT32", "<i", coarse_steps),
        ("temperature", "FP32", "<f", temperature),
    ):
        if value is not None:
            _add(request, name, datatype, _pack(name, layout, value))
    request.outputs.extend(_messages.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in OUTPUTS)
    return request


def decode(response: Any) -> Result:
    """One stage, from a `ModelInferResponse`. Raises `ServerFault` where the response is not of this contract."""
    contents = {
        output.name: (list(output.shape), raw)
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    missing = [name for name in OUTPUTS if name not in contents]
    if missing:
        raise ServerFault(f"the response of model '{response.model_name}' lacks {', '.join(missing)}")
    shape, pixels = contents["image"]
    return Result(
        image=np.frombuffer(pixels, dtype=np.uint8).reshape(shape),
        stage=_text(contents["stage"][1]),
        version=_text(contents["package_digest"][1]),
        seed=struct.unpack("<q", contents["seed"][1])[0],
        timings=json.loads(_text(contents["timings"][1])),
    )


def _encode_prompt(prompt: str) -> bytes:
    try:
        content = prompt.encode("utf-8")
    except (UnicodeEncodeError, AttributeError):
        raise InvalidRequest("the prompt must be a string of valid Unicode") from None
    return struct.pack("<I", len(content)) + content


def _pack(name: str, layout: str, value: Any) -> bytes:
    try:
        return struct.pack(layout, value)
    except (struct.error, OverflowError):
        raise InvalidRequest(f"{name} cannot be {value!r}") from None


def _add(request: Any, name: str, datatype: str, content: bytes) -> None:
    request.inputs.add(name=name, datatype=datatype, shape=[1])
    request.raw_input_contents.append(content)


def _text(raw: bytes) -> str:
    """The one string of a BYTES tensor: a uint32 length, then UTF-8."""
    return raw[4:].decode("utf-8")

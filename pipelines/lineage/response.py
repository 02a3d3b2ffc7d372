"""An answer on disk: which package drew which image from what, with all that is needed to draw it again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import UsageError
from common.files import read_json, sha256_bytes, write_text

if TYPE_CHECKING:
    from emuflow_client import Result

FORMAT = 1


class _Part(BaseModel):
    """Keys that a client of another make adds are left alone."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Asked(_Part):
    """What was asked for beside the prompt; `None` is the package's own."""

    coarse_steps: int | None = None
    temperature: float | None = None
    guidance: float | None = None
    size: tuple[int, int] | None = None
    """Height and width."""
    previews: bool | None = None


class ImageRecord(_Part):
    """The image that came. `pixels_sha256` is over its uint8 [height, width, 3] in row-major order."""

    pixels_sha256: str = Field(pattern="[0-9a-f]{64}")
    height: int
    width: int
    file: str | None = None
    """Where it was written, relative to the folder of this record."""


class Response(_Part):
    """Only the package's digest is demanded; without the rest there is less to check."""

    format: int = FORMAT
    package_digest: str = Field(pattern="^[0-9a-f]{64}$")
    prompt: str | None = None
    """The text itself: it is the user's own file, and without it no image can be drawn again."""
    seed: int | None = None
    options: Asked = Asked()
    image: ImageRecord | None = None
    timings_ms: dict[str, float] = Field(default_factory=dict)
    """On the server, until each stage was done."""
    elapsed_ms: float | None = None
    """On the asking side, until the image was there."""


def pixels_digest(pixels: np.ndarray) -> str:
    """sha256 of uint8 [height, width, 3] in row-major order."""
    return sha256_bytes(np.ascontiguousarray(pixels, dtype=np.uint8).tobytes())


def write_response(
    file: Path, prompt: str, options: Mapping[str, Any], result: "Result", image_file: Path, elapsed_ms: float
) -> None:
    """Write a final `result` of the client as JSON; `options` are those of `Asked`."""
    height, width, _ = result.image.shape
    response = Response(
        package_digest=result.version,
        prompt=prompt,
        seed=result.seed,
        options=Asked(**options),
        image=ImageRecord(
            pixels_sha256=pixels_digest(result.image),
            height=height,
            width=width,
            file=os.path.relpath(image_file, file.parent),
        ),
        timings_ms=result.timings,
        elapsed_ms=round(elapsed_ms, 3),
    )
    write_text(file, response.model_dump_json(indent=2) + "\n")


def read_response(file: Path) -> Response:
    """Raises `UsageError` where the file is absent or names no package."""
    try:
        response = Response.model_validate(read_json(file))
    except FileNotFoundError:
        raise UsageError(
            "there is no such file", where=str(file), fix="write one: emuflow generate … --json FILE"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise UsageError(f"no answer of a package: {key}: {first['msg']}", where=str(file)) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"no answer of a package: {error}", where=str(file)) from None
    if response.format != FORMAT:
        raise UsageError(f"its format is {response.format}, and this reads {FORMAT}", where=str(file))
    return response

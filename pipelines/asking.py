"""Asking a server for an image, for the command line."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ServerError, UsageError
from common.files import atomic_path
from common.home import Home

if TYPE_CHECKING:
    from emuflow_client import Result

_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a command line may ask for beside the prompt; None is the package's own."""

    seed: int | None = None
    steps: int | None = None
    temperature: float | None = None
    guidance: float | None = None
    size: str | None = None
    """`64x64`: height and width."""


@dataclass(frozen=True)
class Received:
    """A stage that came and was written."""

    result: "Result"
    file: Path
    elapsed_ms: float
    """Since the question was asked, on this side."""


def generate_image(
    home: Home,
    prompt: str,
    output: Path,
    *,
    endpoint: str | None,
    options: Options | None = None,
    on_preview: Callable[[Received], None] | None = None,
) -> Received:
    """Ask the server at `endpoint`, or the one of `home`, and write the image as PNG.

    With `on_preview` every earlier stage is written, too, beside it (`out.coarse.png`), and told as it comes.
    Raises `UsageError` for a request that can never be answered, `ServerError` where there was no answer.
    """
    from emuflow_client import GeneratorClient, GeneratorError, InvalidRequest

    options = options or Options()
    endpoint = endpoint or _endpoint(home)
    try:
        with GeneratorClient(endpoint) as client:
            start = time.perf_counter()
            stages = client.stream(
                prompt,
                seed=options.seed,
                coarse_steps=options.steps,
                temperature=options.temperature,
                guidance=options.guidance,
                size=_size(options.size),
                previews=on_preview is not None,
            )
            for result in stages:
                elapsed_ms = 1000 * (time.perf_counter() - start)
                if result.final:
                    return Received(result, _write(result, output), elapsed_ms)
                if on_preview is not None:
                    file = output.with_name(f"{output.stem}.{result.stage}{output.suffix}")
                    on_preview(Received(result, _write(result, file), elapsed_ms))
    except InvalidRequest as error:
        raise UsageError(str(error), where="emuflow generate") from None
    except GeneratorError as error:
        raise ServerError(str(error), where=endpoint) from None
    raise ServerError("the answer ended without an image", where=endpoint)


def keep_answer(file: Path, prompt: str, options: Options, answer: Received, *, previews: bool) -> None:
    """Write what `emuflow lineage` begins with: the package, the request, and the digest of the image's pixels."""
    from pipelines.lineage.response import write_response

    asked = {
        "coarse_steps": options.steps,
        "temperature": options.temperature,
        "guidance": options.guidance,
        "size": _size(options.size),
        "previews": previews,
    }
    write_response(file, prompt, asked, answer.result, answer.file, answer.elapsed_ms)


def _write(result: "Result", file: Path) -> Path:
    from PIL import Image

    with atomic_path(file) as temporary:
        Image.fromarray(result.image).save(temporary, format="PNG")
    return file


def _size(asked: str | None) -> tuple[int, int] | None:
    if asked is None:
        return None
    found = _SIZE.fullmatch(asked)
    if found is None:
        raise UsageError(f"'{asked}' is no size", where="--size", fix="name height and width, such as 64x64")
    return int(found[1]), int(found[2])


def _endpoint(home: Home) -> str:
    """Of the server that `home` runs."""
    from serving.deployment import read_state

    state = read_state(home.serving)
    if state is None or not state.reachable:
        raise UsageError(
            "no server runs here" if state is None else "the server runs in a container",
            where=str(home.root),
            fix="name --endpoint" if state else "start it: `emuflow serve`, or name --endpoint",
        )
    return state.grpc_endpoint

"""Serving and asking, for the command line."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common.errors import ServerError, UsageError
from common.files import atomic_path
from common.home import Home
from pipelines.connection import connect
from pipelines.record import last_run
from pipelines.signals import Interrupted, signals_raise

if TYPE_CHECKING:
    from emuflow_client import Result

_DIGEST = re.compile(r"[0-9a-f]{6,64}")
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


def serve_model(
    home: Home,
    model: str,
    *,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    console: Console,
    host: str = "127.0.0.1",
) -> None:
    """Serve `model` until SIGINT or SIGTERM. `champion` follows every promotion; anything else is served as it is.

    Raises `UsageError` where there is no such package, `ServerError` or `SignatureError` where it cannot be served,
    `TrackingError` where the release store cannot be asked for the champion.
    """
    from serving.deployment import ServingState
    from serving.server import Ports
    from serving.supervisor import serve

    def tell(state: ServingState) -> None:
        digest = state.digest[:12] if state.digest else "nothing"
        console.print(
            f"Serving {digest} at gRPC {host}:{state.grpc_port}, HTTP {host}:{state.http_port}. Ctrl-C ends it.",
            soft_wrap=True,
        )

    follows_champion = model == "champion"
    desired = _champion(connect(home).release_url) if follows_champion else _always(_find_package(home, model))
    try:
        with signals_raise():
            serve(
                folder=home.serving,
                package_store=home.packages,
                key_folder=home.keys,
                desired=desired,
                stop=threading.Event(),
                follows_champion=follows_champion,
                ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port, host=host),
                on_change=tell,
            )
    except Interrupted:
        console.print("The server has ended.")


def serve_on_remote(home: Home, model: str, endpoint: str, repository: Path, console: Console) -> None:
    """Make the Triton server at `endpoint` serve `model` until SIGINT or SIGTERM; it serves on after that.

    `repository` is the folder whose `models` the server reads. Errors as in `serve_model`.
    """
    from serving.remote import RemoteDeployment, follow

    desired = _champion(connect(home).release_url) if model == "champion" else _always(_find_package(home, model))

    def tell(digest: str) -> None:
        console.print(f"{endpoint} serves {digest[:12]}. Ctrl-C ends this, not the server.", soft_wrap=True)

    try:
        with signals_raise():
            deployment = RemoteDeployment(endpoint, repository.resolve(), home.packages, home.keys)
            follow(deployment, desired, threading.Event(), on_change=tell)
    except Interrupted:
        console.print(f"{endpoint} serves on.")


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


def _champion(release_url: str) -> Callable[[], str | None]:
    """Asks the release store for the champion's digest; raises `TrackingError` where it does not answer."""
    from pipelines.parent import current_champion

    return lambda: current_champion(release_url)


def _always(digest: str) -> Callable[[], str | None]:
    return lambda: digest


def _find_package(home: Home, model: str) -> str:
    """The digest that `candidate` or the beginning of a digest stands for."""
    if model == "candidate":
        record = last_run(home)
        if record is None or record.candidate is None:
            raise UsageError(
                "the last run left no candidate", where=str(home.root), fix="run the pipeline: emuflow run"
            )
        return record.candidate
    names = sorted(path.name for path in home.packages.iterdir()) if home.packages.is_dir() else []
    found = [name for name in names if _DIGEST.fullmatch(model) and name.startswith(model)]
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} packages match '{model}'", where=str(home.packages), fix="see `emuflow history`"
        )
    return found[0]

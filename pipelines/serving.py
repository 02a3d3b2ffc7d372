"""Serving, for the command line."""

import re
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common.errors import UsageError
from common.home import Home
from pipelines.connection import connect
from pipelines.record import last_run
from pipelines.signals import Interrupted, signals_raise

if TYPE_CHECKING:
    from serving.release.experiments.watch import Watch

_DIGEST = re.compile(r"[0-9a-f]{6,64}")


def serve_model(
    home: Home,
    model: str,
    *,
    grpc_port: int,
    http_port: int,
    metrics_port: int,
    console: Console,
    host: str = "127.0.0.1",
    stalled_after_s: float = 60.0,
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
        with signals_raise(), ExitStack() as stack:
            canary = _canary(home) if follows_champion else None
            watch = stack.enter_context(closing(_watch(home))) if follows_champion else None
            serve(
                folder=home.serving,
                package_store=home.packages,
                key_folder=home.keys,
                desired=desired,
                stop=threading.Event(),
                canary=canary,
                canary_served=watch.served if watch else None,
                follows_champion=follows_champion,
                stalled_after_s=stalled_after_s,
                ports=Ports(http=http_port, grpc=grpc_port, metrics=metrics_port, host=host),
                on_change=tell,
            )
    except Interrupted:
        console.print("The server has ended.")


def serve_on_remote(
    home: Home,
    model: str,
    endpoint: str,
    repository: Path,
    console: Console,
    *,
    accelerator: str = "none",
    engine_cache: str | None = None,
    control_key: Path | None = None,
) -> None:
    """Make the Triton server at `endpoint` serve `model` until SIGINT or SIGTERM; it serves on after that.

    `repository` is the folder whose `models` the server reads, `accelerator` what computes on its GPU: `onnxruntime`,
    `tensorrt`, which keeps what it compiles in `engine_cache` on that machine, or `none`, where packages compute by
    themselves. `control_key` is the file with the key of its model control, where that asks for one. Errors as in
    `serve_model`; `UsageError` for an unknown accelerator or a file without a key.
    """
    from serving.control_key import ControlKey
    from serving.gpu.accelerators import LOAD_TIMEOUT_S, parse_accelerator
    from serving.gpu.config import GpuOptions
    from serving.gpu.layout import GraphLayout
    from serving.remote import RemoteDeployment, follow

    chosen = parse_accelerator(accelerator)
    if engine_cache is not None and chosen != "tensorrt":
        raise UsageError("an engine cache is for --accelerator tensorrt", where=f"--engine-cache {engine_cache}")
    key = ControlKey.read(control_key) if control_key else None
    graphs = GraphLayout(GpuOptions(accelerator=chosen, engine_cache=engine_cache)) if chosen else None

    desired = _champion(connect(home).release_url) if model == "champion" else _always(_find_package(home, model))

    def tell(digest: str) -> None:
        console.print(f"{endpoint} serves {digest[:12]}. Ctrl-C ends this, not the server.", soft_wrap=True)

    try:
        with signals_raise():
            deployment = RemoteDeployment(
                endpoint,
                repository.resolve(),
                home.packages,
                home.keys,
                graphs=graphs,
                control_key=key,
                load_timeout_s=LOAD_TIMEOUT_S[chosen],
            )
            follow(deployment, desired, threading.Event(), on_change=tell)
    except Interrupted:
        console.print(f"{endpoint} serves on.")


def _champion(release_url: str) -> Callable[[], str | None]:
    """Asks the release store for the champion's digest; raises `TrackingError` where it does not answer."""
    from pipelines.parent import current_champion

    return lambda: current_champion(release_url)


def _canary(home: Home) -> Callable[[], str | None]:
    """Asks for the package that some users are sent to beside the champion."""
    from pipelines.canaries import wanted_canary

    connection = connect(home)
    return lambda: wanted_canary(home, connection)


def _watch(home: Home) -> "Watch":
    """Tells routers whether the canary is served, and looks at it."""
    from pipelines.canaries import experiments_url
    from serving.release.experiments.watch import Watch

    connection = connect(home)
    return Watch(lambda: experiments_url(home, connection), _champion(connection.release_url))


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

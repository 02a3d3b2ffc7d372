"""A Triton server that others run, and whose model repository this process can write to.

It is started with `--model-repository DIR/models --model-control-mode=explicit`, on any machine that sees DIR. What it
loads was verified in DIR, as for the embedded server; a `RemoteDeployment` never starts or stops it.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from common.errors import ServerError
from common.redaction import redact_text
from serving.backoff import Backoff, Refusals
from serving.control import ModelControl
from serving.deployment import PRODUCTION_NAME, locked
from serving.desire import Desire
from serving.repository import ModelRepository

log = logging.getLogger(__name__)


class RemoteDeployment:
    """One model name of a server, in a repository of its own: nothing else may write there."""

    def __init__(
        self,
        endpoint: str,
        repository: Path,
        package_store: Path,
        key_folder: Path,
        *,
        name: str = PRODUCTION_NAME,
        load_timeout_s: float = 120.0,
    ):
        """`endpoint` is `host:port` of its gRPC service, `repository` the DIR of this module's first lines."""
        self._control = ModelControl(endpoint, timeout_s=load_timeout_s)
        self._folder, self._repository = repository, ModelRepository(repository, key_folder)
        self._package_store, self._name = package_store, name

    def reconcile(self, desired_digest: str) -> bool:
        """Serve the package `desired_digest`; a server that was started again meanwhile gets it anew. Returns whether
        anything changed.

        Raises `SignatureError` or `ServerError` where it cannot; what served before then still serves.
        """
        with locked(self._folder):
            serves = self._control.is_ready(self._name)
            if self._repository.digest(self._name) != desired_digest:
                package = self._package_store / desired_digest
                with self._repository.replacing(package, self._name, expected_digest=desired_digest):
                    self._control.load(self._name)
                return True
            if not serves:
                self._control.load(self._name)
            return not serves


def follow(
    deployment: RemoteDeployment,
    desired: Callable[[], str | None],
    stop: threading.Event,
    *,
    on_change: Callable[[str], None],
    poll_s: float = 2.0,
    retry: Backoff | None = None,
) -> None:
    """Reconcile to `desired()` until `stop` is set; `on_change` is given each digest that begins to serve.

    The first one must be named and load: `SignatureError`, `ServerError` and whatever `desired` raises reach the caller.
    Later failures are logged and tried again after pauses; what serves, serves on.
    """
    first = desired()
    if first is None:
        raise ServerError("there is nothing to serve: no package is desired", fix="run the pipeline: emuflow run")
    deployment.reconcile(first)
    on_change(first)
    refusals, desire = Refusals(retry or Backoff()), Desire(desired, first)
    while not stop.wait(poll_s):
        if desire.refresh():
            refusals.keep((desire.digest,))
        if refusals.due(desire.digest):
            _try(deployment, desire.digest, refusals, on_change)


def _try(deployment: RemoteDeployment, digest: str, refusals: Refusals, on_change: Callable[[str], None]) -> None:
    try:
        changed = deployment.reconcile(digest)
    except Exception as error:  # noqa: BLE001 - a network, a full disk, a damaged package: what serves must go on
        pause_s = refusals.add(digest)
        log.error("package %s is not served, the next try is in %g s: %s", digest, pause_s, redact_text(str(error)))
    else:
        refusals.forget(digest)
        if changed:
            on_change(digest)

"""A Triton server that others run, and whose model repository this process can write to.

It is started with `--model-repository DIR/models --model-control-mode=explicit`, on any machine that sees DIR, and loads
nothing but what it is asked for here: that was verified in DIR right before, as for the embedded server. A
`RemoteDeployment` never starts or stops it. Where it has a GPU, the graphs of a package can be models of their own
(`serving/gpu`).
"""

import logging
import secrets
import threading
from collections.abc import Callable
from pathlib import Path

from common.errors import RepositoryError, ServerError, SignatureError
from common.files import write_text
from common.redaction import redact_text
from serving.backoff import Backoff, Refusals
from serving.control import Load, LoadTimeout, ModelControl
from serving.control_key import ControlKey
from serving.deployment import PRODUCTION_NAME, locked
from serving.desire import Desire
from serving.gpu.layout import GraphLayout
from serving.gpu.models import GraphModels
from serving.package.manifest import Manifest
from serving.package.runtime.graphs import GRAPHS_NAME
from serving.repository import ModelRepository

log = logging.getLogger(__name__)
_LOADING_NAME = "loading"
"""Stands in the folder while the server loads what stands in the repository, and until it is known what became of that: an
id of the load."""


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
        graphs: GraphLayout | None = None,
        control_key: ControlKey | None = None,
        load_timeout_s: float = 120.0,
        quiet_s: float = 10.0,
    ):
        """`endpoint` is `host:port` of its gRPC service, `repository` the DIR of this module's first lines, `control_key` what
        its model control asks for, if it does.

        With `graphs` the package's graphs are laid out as models of their own, which its Python model asks; those of the
        package before are unloaded once they were not asked for `quiet_s` seconds.
        """
        self._control = ModelControl(endpoint, key=control_key, timeout_s=load_timeout_s)
        self._loading, self._load_timeout_s = repository / _LOADING_NAME, load_timeout_s
        self._late: dict[str, Load] = {}  # at most one, by its id
        self._folder, self._repository = repository, ModelRepository(repository, key_folder)
        self._package_store, self._name = package_store, name
        self._graphs = GraphModels(self._control, self._repository.models, name, graphs, quiet_s=quiet_s)

    def check(self) -> None:
        """Raises `ServerError` where the server is out of reach, or does not take what this process would tell it."""
        self._control.check()

    def reconcile(self, desired_digest: str) -> bool:
        """Serve the package `desired_digest`; a server that was started again meanwhile gets it anew, from the repository
        where it still verifies there, else from the package store. Returns whether anything changed.

        Raises `SignatureError`, `RepositoryError` or `ServerError` where it cannot; what served before then still serves.
        Raises `LoadTimeout` where a load has not ended in time; nothing is moved before it has.
        """
        with locked(self._folder):
            self._graphs.settle()
            settled = self._loading.exists() and self._settle()
            serves = self._control.is_ready(self._name)
            stands = self._repository.digest(self._name) == desired_digest and self._graphs.stand()
            complete = stands and serves and self._graphs.complete()
            if not (complete or (stands and self._restore(desired_digest))):
                self._replace(desired_digest)
            self._graphs.retire()
            return settled or not complete

    def _restore(self, digest: str) -> bool:
        """Load what the server lacks of the package that stands in the repository. Returns whether that is what was signed."""
        manifest = self._verified(digest)
        if manifest is None:
            return False
        self._graphs.restore(manifest)
        if not self._control.is_ready(self._name):
            self._load(digest)
        return True

    def _replace(self, digest: str) -> None:
        """The graphs' models are loaded and tried first: a package that begins to serve finds them there."""
        package = self._package_store / digest
        with (
            self._graphs.changing() as prepare,
            self._repository.replacing(package, self._name, expected_digest=digest, prepare=prepare),
        ):
            self._load(digest)

    def _load(self, digest: str) -> None:
        """Load what stands in the repository. The load has an id of its own, by which the process that began it knows it
        again."""
        if self._verified(digest) is None:  # graphs may have been tried for minutes since it was put there
            raise SignatureError(
                f"package {digest} was altered there before it was loaded",
                where=str(self._folder),
                fix="it is put there anew at the next try; nobody else may write to this folder",
            )
        load_id = secrets.token_hex(8)
        write_text(self._loading, load_id)
        self._wait(load_id, self._control.begin_load(self._name))

    def _verified(self, digest: str | None = None) -> Manifest | None:
        """The manifest of what stands in the repository, or `None` where that is nothing or not what was signed: it is not
        to be loaded then."""
        try:
            manifest = self._repository.verified(self._name, expected_digest=digest, besides={GRAPHS_NAME})
            if manifest is not None:
                self._graphs.check(manifest)
        except (SignatureError, RepositoryError) as error:
            log.error("what stands in the repository is not loaded: %s", error)
            return None
        return manifest

    def _settle(self) -> bool:
        """Find out what became of a load that nobody has waited for to its end. One of another process cannot be asked, but
        Triton takes another one of the same files after it alone, and an unload, too: that one where the files are not what
        was signed. What does not serve then is removed. Returns whether it serves."""
        self._control.is_ready(self._name)  # a server that is out of reach says nothing about them
        load_id = self._loading.read_text(encoding="utf-8")
        load = self._late.get(load_id)
        if load is None:
            begin = self._control.begin_load if self._verified() else self._control.begin_unload
            load = begin(self._name)
        serves = False
        try:
            self._wait(load_id, load)
        except LoadTimeout:
            raise
        except ServerError as error:
            log.warning("what was still being loaded is not served: %s", error)
        else:
            serves = self._control.is_ready(self._name)
        if not serves:
            self._repository.remove(self._name)
        return serves

    def _wait(self, load_id: str, load: Load) -> None:
        """Raises `ServerError` where it failed, and `LoadTimeout` where it has not ended in time: it is kept then."""
        self._late = {}
        try:
            load.wait(self._load_timeout_s)
        except LoadTimeout:
            self._late = {load_id: load}
            raise
        except ServerError:
            self._loading.unlink(missing_ok=True)
            raise
        self._loading.unlink(missing_ok=True)


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
    deployment.check()  # what serves already needs no load, and a missing key would come to light at the next promotion
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

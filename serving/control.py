"""Explicit model control of a running Triton server, over gRPC."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from common.errors import ServerError
from serving.control_key import ControlKey

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

_ASKING_S = 60.0
"""A server that takes longer to say what it has does not answer, however long loading a model may take."""


_KEEPALIVE_MS = 330_000
"""Triton ends connections that ask more often than every five minutes (`--grpc-http2-min-recv-ping-interval-without-data`)."""


class LoadTimeout(ServerError):
    """The server did not say in time what became of a load, or of an unload that waits for one. It goes on with it: nobody
    knows yet what will serve."""


class Load:
    """One load, or unload, that the server was asked for, whose end can be waited for more than once.

    Giving up a call ends nothing in Triton (2.51), which still does it later; several that wait for one another come in any
    order, and where files moved meanwhile one of them can wait for ever. So a late load is not asked for again.
    """

    def __init__(self, call: Callable[[], None], late: str, endpoint: str):
        self._late, self._endpoint, self._ended = late, endpoint, Future[None]()
        threading.Thread(target=self._run, args=(call,), name="load", daemon=True).start()

    def wait(self, timeout_s: float) -> None:
        """Return when it serves. Raises `ServerError` where it does not, `LoadTimeout` where it has not ended by then."""
        if wait([self._ended], timeout_s).not_done:
            raise LoadTimeout(self._late.format(timeout_s), where=self._endpoint)
        self._ended.result()

    def _run(self, call: Callable[[], None]) -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - whoever waits is told
            self._ended.set_exception(error)
        else:
            self._ended.set_result(None)


class ModelControl:
    """Loads and unloads models of the server at `endpoint` (`host:port`), from any process that has its key."""

    def __init__(self, endpoint: str, *, key: ControlKey | None = None, timeout_s: float = 60.0):
        """Without a `key` only a server loads that leaves its model control to everybody."""
        self.endpoint, self.timeout_s = endpoint, timeout_s
        self._headers = key.grpc_headers if key else None

    def load(self, name: str) -> None:
        """Load or reload `name` from the repository. One load of a name at a time: a second one waits for the first.

        Raises `ServerError` where it cannot; what served before then still serves. Raises `LoadTimeout` where the load
        has not ended after `timeout_s`: its files must stay as they are until it has.
        """
        self.begin_load(name).wait(self.timeout_s)

    def begin_load(self, name: str) -> "Load":
        """`load` for those who would wait for its end again after a `LoadTimeout`."""
        late = f"model '{name}' was not loaded within {{:g}} s, and is loaded still"
        return Load(lambda: self._call("load", name, timeout_s=None), late, self.endpoint)

    def begin_unload(self, name: str) -> "Load":
        """Unload `name`, whether it is loaded or not, once a load of it that is under way has ended: a way to wait for that
        where the files must not be loaded again. To be waited for as a load is."""
        late = f"what was being loaded as '{name}' has not ended within {{:g}} s"
        return Load(lambda: self._call("unload", name, timeout_s=None), late, self.endpoint)

    def unload(self, name: str) -> None:
        self._call("unload", name, timeout_s=self.timeout_s)

    def check(self) -> None:
        """Ask whether this process may change what the server serves; nothing is changed by that. Raises `ServerError` where
        it may not, or where the server does not answer."""
        with self._client("the server does not give control of its models") as client:
            client.get_model_repository_index(headers=self._headers, client_timeout=self._asking_s)

    def is_ready(self, name: str) -> bool:
        """Whether `name` is loaded. Raises `ServerError` where the server does not answer."""
        with self._client("the server does not answer") as client:
            return bool(client.is_model_ready(name, client_timeout=self._asking_s))

    def requests(self, name: str) -> int:
        """How many requests the model `name` has answered or refused. Raises `ServerError` where that cannot be asked."""
        with self._client(f"the server tells nothing of model '{name}'") as client:
            statistics = client.get_inference_statistics(name, client_timeout=self._asking_s)
        assert statistics is not None, "an error is raised in its place"
        counts = [version.inference_stats for version in statistics.model_stats]
        return sum(count.success.count + count.fail.count for count in counts)

    @property
    def _asking_s(self) -> float:
        return min(_ASKING_S, self.timeout_s)

    def _call(self, verb: Literal["load", "unload"], name: str, timeout_s: float | None) -> None:
        with self._client(f"the server could not {verb} model '{name}'") as client:
            getattr(client, f"{verb}_model")(name, headers=self._headers, client_timeout=timeout_s)

    @contextmanager
    def _client(self, failure: str) -> "Iterator[InferenceServerClient]":
        """A connection for one question; what the server refuses is a `ServerError` that begins with `failure`."""
        from tritonclient.grpc import InferenceServerClient, KeepAliveOptions
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(
            self.endpoint,
            # A load may take long, and nobody would hear of a server that is gone without a word.
            keepalive_options=KeepAliveOptions(keepalive_time_ms=_KEEPALIVE_MS, http2_max_pings_without_data=0),
        )
        try:
            yield client
        except InferenceServerException as error:
            restricted = "restricted" in str(error)
            raise ServerError(
                f"{failure}: {error}",
                where=self.endpoint,
                fix="name its key: emuflow serve --control-key FILE (docs/serving.md)" if restricted else None,
            ) from error
        finally:
            client.close()

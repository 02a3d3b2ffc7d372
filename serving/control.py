"""Explicit model control of a running Triton server, over gRPC."""

from typing import Any, Literal

from common.errors import ServerError
from serving.control_key import ControlKey

_ASKING_S = 60.0
"""A server that takes longer to say what it has does not answer, however long loading a model may take."""


class LoadTimeout(ServerError):
    """The server did not say in time what became of a load. It goes on with it: nobody knows yet what will serve."""


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
        self._call("load", name)

    def unload(self, name: str) -> None:
        self._call("unload", name)

    def check(self) -> None:
        """Whether this process may change what the server serves; nothing is changed by asking. Raises `ServerError` where it
        may not, or where the server does not answer."""
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.endpoint)
        try:
            client.get_model_repository_index(headers=self._headers, client_timeout=min(_ASKING_S, self.timeout_s))
        except InferenceServerException as error:
            raise ServerError(
                f"the server does not give control of its models: {error}", where=self.endpoint, fix=_fix(error)
            ) from error
        finally:
            client.close()

    def is_ready(self, name: str) -> bool:
        """Whether `name` is loaded. Raises `ServerError` where the server does not answer."""
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.endpoint)
        try:
            return bool(client.is_model_ready(name, client_timeout=min(_ASKING_S, self.timeout_s)))
        except InferenceServerException as error:
            raise ServerError(f"the server does not answer: {error}", where=self.endpoint) from error
        finally:
            client.close()

    def requests(self, name: str) -> int:
        """How many requests the model `name` has answered or refused. Raises `ServerError` where that cannot be asked."""
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.endpoint)
        try:
            statistics = client.get_inference_statistics(name, client_timeout=min(_ASKING_S, self.timeout_s))
        except InferenceServerException as error:
            raise ServerError(f"the server tells nothing of model '{name}': {error}", where=self.endpoint) from error
        finally:
            client.close()
        assert statistics is not None, "an error is raised in its place"
        counts = [version.inference_stats for version in statistics.model_stats]
        return sum(count.success.count + count.fail.count for count in counts)

    def _call(self, verb: Literal["load", "unload"], name: str) -> None:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.endpoint)
        try:
            getattr(client, f"{verb}_model")(name, headers=self._headers, client_timeout=self.timeout_s)
        except InferenceServerException as error:
            if verb == "load" and _is_late(error):
                raise LoadTimeout(
                    f"model '{name}' was not loaded within {self.timeout_s:g} s, and is loaded still",
                    where=self.endpoint,
                ) from error
            raise ServerError(
                f"the server could not {verb} model '{name}': {error}", where=self.endpoint, fix=_fix(error)
            ) from error
        finally:
            client.close()


def _fix(error: Exception) -> str | None:
    restricted = "restricted" in str(error)
    return "name its key: emuflow serve --control-key FILE (docs/serving.md)" if restricted else None


def _is_late(error: Any) -> bool:
    return error.status() == "StatusCode.DEADLINE_EXCEEDED"

"""Explicit model control of a running Triton server, over gRPC."""

from typing import Any

from common.errors import ServerError


class ModelControl:
    """Loads and unloads models of the server at `endpoint` (`host:port`), from any process."""

    def __init__(self, endpoint: str, *, timeout_s: float = 60.0):
        self.endpoint, self.timeout_s = endpoint, timeout_s

    def load(self, name: str) -> None:
        """Load or reload `name` from the repository. Raises `ServerError`; what served before then still serves."""
        self._call("load", "load_model", name, client_timeout=self.timeout_s)

    def unload(self, name: str) -> None:
        self._call("unload", "unload_model", name, client_timeout=self.timeout_s)

    def is_ready(self, name: str) -> bool:
        return bool(self._call("ask for", "is_model_ready", name, client_timeout=self.timeout_s))

    def _call(self, verb: str, method: str, name: str, **arguments: Any) -> Any:
        from tritonclient.grpc import InferenceServerClient
        from tritonclient.utils import InferenceServerException

        client = InferenceServerClient(self.endpoint)
        try:
            return getattr(client, method)(name, **arguments)
        except InferenceServerException as error:
            raise ServerError(f"the server could not {verb} model '{name}': {error}", where=self.endpoint) from error
        finally:
            client.close()

"""How a server is reached, and how patient a client is: what both clients are built on."""

import random
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import grpc
from tritonclient.grpc import service_pb2_grpc

from emuflow_client.errors import Closed

_OPTIONS = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_FORBIDDEN = "triton_grpc_error"
"""With this header Triton 2.51 can die of a segmentation fault at an error."""

Channel = TypeVar("Channel", grpc.Channel, grpc.aio.Channel)


class ClientBase(ABC, Generic[Channel]):
    """Where requests go, for how long, and how often they are tried."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 30.0,
        model: str = "generator",
        retries: int = 2,
        tls: bool | bytes = False,
        headers: Mapping[str, str] | None = None,
    ):
        """`endpoint` is `host:port`. `timeout_s` is for a whole request; the connection is made by the first one.

        `tls`: the server's certificate is checked, against the machine's authorities (True) or against these (PEM); False
        connects in the clear. `headers` go with every request, such as a proxy's token. Raises `ValueError` for a time-out
        that is not above 0, and for a header that harms the server.
        """
        if timeout_s <= 0:
            raise ValueError(f"timeout_s must be above 0, not {timeout_s}")
        self._timeout_s, self._model, self._retries = timeout_s, model, retries
        self._metadata = tuple((name.lower(), value) for name, value in (headers or {}).items())
        if any(name == _FORBIDDEN for name, _ in self._metadata):
            raise ValueError(f"the header {_FORBIDDEN} can end the server: errors are read without it")
        authorities = grpc.ssl_channel_credentials(tls if isinstance(tls, bytes) else None) if tls else None
        self._channel: Channel = self._open(endpoint, authorities, _OPTIONS)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._closed = False

    @abstractmethod
    def _open(
        self, endpoint: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, int]]
    ) -> Channel:
        """A channel, in the clear without `credentials`."""

    def _call(self, requests: Any, deadline: float) -> Any:
        """A stream under way, to be answered by `deadline` (`time.monotonic`). Raises `Closed` once the client is."""
        left_s = max(0.001, deadline - time.monotonic())
        try:
            return self._stub.ModelStreamInfer(requests, timeout=left_s, metadata=self._metadata)
        except (ValueError, grpc.aio.UsageError):
            if self._closed:
                raise Closed("this client was closed: make another one") from None
            raise

    def _pause_s(self, attempt: int, deadline: float) -> float | None:
        """Seconds until a request is tried again after so many earlier tries; None where it is not, or not in time.

        Each is up to a half shorter by chance: those whom a full server refused together do not come back together.
        """
        pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**attempt) * random.uniform(0.5, 1)
        return pause_s if attempt < self._retries and time.monotonic() + pause_s < deadline else None

"""How a server is reached: its address, its certificate, what each request tells a proxy before it."""

from collections.abc import Mapping

import grpc

_OPTIONS = [
    ("grpc.max_receive_message_length", 256 << 20),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
]
_FORBIDDEN = "triton_grpc_error"
"""With this header Triton 2.51 can die of a segmentation fault at an error."""


def open_channel(endpoint: str, tls: bool | bytes) -> grpc.Channel:
    """To `host:port`. `tls`: the server's certificate is checked against the machine's authorities (True) or against
    these (PEM); False connects in the clear."""
    if not tls:
        return grpc.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.secure_channel(endpoint, _credentials(tls), options=_OPTIONS)


def open_aio_channel(endpoint: str, tls: bool | bytes) -> grpc.aio.Channel:
    """The same for asyncio."""
    if not tls:
        return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.aio.secure_channel(endpoint, _credentials(tls), options=_OPTIONS)


def metadata(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """What is sent with each request. Raises `ValueError` for a header that harms the server."""
    sent = tuple((name.lower(), value) for name, value in (headers or {}).items())
    if any(name == _FORBIDDEN for name, _ in sent):
        raise ValueError(f"the header {_FORBIDDEN} can end the server: errors are read without it")
    return sent


def _credentials(tls: bool | bytes) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(tls if isinstance(tls, bytes) else None)

"""What a server's errors mean, as types."""

import grpc

from emuflow_client.errors import Cancelled, GeneratorError, InvalidRequest, ServerFault, TimedOut, Unavailable

# An error inside a stream comes as bare text. Triton can send it as a gRPC status (header `triton_grpc_error`), but
# with it Triton 2.51 can die of a segmentation fault at an error, so the text's typed prefix is read instead.
_PREFIXES: dict[str, type[GeneratorError]] = {
    "INVALID_ARGUMENT:": InvalidRequest,
    "UNAVAILABLE:": Unavailable,
    "Request for unknown model": Unavailable,
    "CANCELLED:": Cancelled,
    "DEADLINE_EXCEEDED:": TimedOut,
}
_STATUSES: dict[grpc.StatusCode, type[GeneratorError]] = {
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: TimedOut,
    grpc.StatusCode.CANCELLED: Cancelled,
}


def typed(message: str) -> GeneratorError:
    """An error that came inside a stream."""
    for prefix, kind in _PREFIXES.items():
        if message.startswith(prefix):
            return kind(message)
    return ServerFault(message)


def from_status(error: grpc.RpcError) -> GeneratorError:
    """An error that ended a call."""
    code, details = error.code(), error.details() or "no details"  # pyright: ignore[reportAttributeAccessIssue]
    return _STATUSES.get(code, ServerFault)(f"{code.name}: {details}")

"""Ask an Emuflow generator for images: `with GeneratorClient("localhost:8001") as client: client.generate("...")`."""

from emuflow_client.aio import AsyncGeneratorClient
from emuflow_client.client import GeneratorClient
from emuflow_client.errors import (
    Cancelled,
    Closed,
    GeneratorError,
    InvalidRequest,
    ServerFault,
    TimedOut,
    Unavailable,
)
from emuflow_client.wire import Options, Result

__all__ = [
    "AsyncGeneratorClient",
    "Cancelled",
    "Closed",
    "GeneratorClient",
    "GeneratorError",
    "InvalidRequest",
    "Options",
    "Result",
    "ServerFault",
    "TimedOut",
    "Unavailable",
]

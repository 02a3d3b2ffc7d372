"""What can go wrong between a program and a generator, as types."""


class GeneratorError(Exception):
    """Base of every error that this library raises."""


class InvalidRequest(GeneratorError):
    """The request can never be answered as it stands: correct it, do not repeat it."""


class Unavailable(GeneratorError):
    """No server, or no model of this name on it, answers now. It was tried again as often as the client may."""


class TimedOut(GeneratorError):
    """The answer did not come within the time-out or the deadline. The server stops."""


class Cancelled(GeneratorError):
    """The request was cancelled, by this side or by the server."""


class Closed(GeneratorError):
    """The client was closed and asks nothing any more: make another one."""


class ServerFault(GeneratorError):
    """The server failed to answer a request that it should have answered, or answered what nobody can read."""

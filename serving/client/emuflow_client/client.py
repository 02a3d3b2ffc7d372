"""The client: one gRPC stream for each request, so that it has its own deadline and can be cancelled alone."""

import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Unpack

import grpc

from emuflow_client.connection import ClientBase
from emuflow_client.errors import ServerFault, Unavailable
from emuflow_client.replies import from_status, typed
from emuflow_client.wire import Options, Result, decode, encode, without_previews


class GeneratorClient(ClientBase[grpc.Channel]):
    """Asks the generator behind `endpoint` (`host:port` of Triton's gRPC service) for images.

    Safe to share between threads. A request is tried again, at most `retries` times and always within `timeout_s`,
    only where the server was unavailable and nothing had been answered.
    """

    def _open(
        self, endpoint: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, int]]
    ) -> grpc.Channel:
        if credentials is None:
            return grpc.insecure_channel(endpoint, options=options)
        return grpc.secure_channel(endpoint, credentials, options=options)

    def generate(self, prompt: str, **options: Unpack[Options]) -> Result:
        """The image of `prompt`, drawn without previews unless `previews=True` asks for them. `Options` says what else
        there is: `seed`, `coarse_steps`, `temperature`, `guidance`, `size`, `format`, `deadline_ms`.

        Raises, all of them `GeneratorError`:
            InvalidRequest: the request can never be answered, such as an empty prompt; it is not tried again.
            Unavailable: no server, or no model of this name, also after the retries.
            TimedOut: there was no image within `timeout_s` or `deadline_ms`; the request is cancelled.
            Cancelled: the server cancelled it, or `close` did.
            Closed: the client was closed before.
            ServerFault: anything else that the server did.
        """
        for result in self.stream(prompt, **without_previews(options)):
            if result.final:
                return result
        raise ServerFault("the stream ended without a final image")

    def stream(self, prompt: str, **options: Unpack[Options]) -> Generator[Result, None, None]:
        """Each stage as it is done: previews, then the final image. Closing the generator cancels the request.

        `timeout_s` bounds the whole stream, retries and pauses between stages included. Raises, at the first `next`
        or later, what `generate` does.
        """
        request = encode(self._model, prompt, options)
        deadline = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            answered = False
            try:
                for result in self._attempt(request, deadline):
                    answered = True
                    yield result
                return
            except Unavailable:
                pause_s = self._pause_s(attempt, deadline)
                if answered or pause_s is None:
                    raise
                time.sleep(pause_s)

    def _attempt(self, request: Any, deadline: float) -> Iterator[Result]:
        call = self._call(iter([request]), deadline)
        answered = False
        try:
            for message in call:
                if message.error_message:
                    answered = True
                    raise typed(message.error_message)
                result = decode(message.infer_response)
                answered = result.final
                yield result
        except grpc.RpcError as error:
            raise from_status(error) from None
        finally:
            # Triton 2.51 never frees all of a stream that is cancelled, also where nothing is left to come.
            if answered:
                with suppress(grpc.RpcError):
                    for _ in call:
                        pass
            call.cancel()

    def close(self) -> None:
        """Close the connection; requests that still run are cancelled, and later ones raise `Closed`."""
        self._closed = True
        self._channel.close()

    def __enter__(self) -> "GeneratorClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

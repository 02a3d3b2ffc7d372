"""The client for asyncio: the same calls, errors and time-outs as `GeneratorClient`."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Unpack

import grpc

from emuflow_client.connection import ClientBase
from emuflow_client.errors import Cancelled, ServerFault, Unavailable
from emuflow_client.replies import from_status, typed
from emuflow_client.wire import Options, Result, decode, encode, without_previews


class AsyncGeneratorClient(ClientBase[grpc.aio.Channel]):
    """`GeneratorClient` for one event loop; many requests may run at once. It is made as `GeneratorClient` is."""

    def _open(
        self, endpoint: str, credentials: grpc.ChannelCredentials | None, options: list[tuple[str, int]]
    ) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(endpoint, options=options)
        return grpc.aio.secure_channel(endpoint, credentials, options=options)

    async def generate(self, prompt: str, **options: Unpack[Options]) -> Result:
        """The image of `prompt`; arguments and errors as in `GeneratorClient.generate`. A task that is cancelled cancels
        its request."""
        async with aclosing(self.stream(prompt, **without_previews(options))) as stages:
            async for result in stages:
                if result.final:
                    return result
        raise ServerFault("the stream ended without a final image")

    async def stream(self, prompt: str, **options: Unpack[Options]) -> AsyncGenerator[Result, None]:
        """Each stage as it is done, as in `GeneratorClient.stream`. Closing the generator cancels the request."""
        request = encode(self._model, prompt, options)
        deadline = time.monotonic() + self._timeout_s
        for attempt in range(self._retries + 1):
            answered = False
            try:
                async with aclosing(self._attempt(request, deadline)) as results:
                    async for result in results:
                        answered = True
                        yield result
                return
            except Unavailable:
                pause_s = self._pause_s(attempt, deadline)
                if answered or pause_s is None:
                    raise
                await asyncio.sleep(pause_s)

    async def _attempt(self, request: Any, deadline: float) -> AsyncGenerator[Result, None]:
        call = self._call(_once(request), deadline)
        answered = False
        try:
            async for message in call:
                if message.error_message:
                    answered = True
                    raise typed(message.error_message)
                result = decode(message.infer_response)
                answered = result.final
                yield result
        except grpc.aio.AioRpcError as error:
            raise from_status(error) from None
        except asyncio.CancelledError:
            if self._closed and not _task_is_cancelled():  # gRPC tells both alike
                raise Cancelled("this client was closed meanwhile") from None
            raise
        finally:
            try:
                if answered:  # to its end, as in `GeneratorClient`
                    with suppress(grpc.aio.AioRpcError):
                        async for _ in call:
                            pass
            finally:
                call.cancel()

    async def close(self) -> None:
        """Close the connection; requests that still run are cancelled, and later ones raise `Closed`."""
        self._closed = True
        await self._channel.close()

    async def __aenter__(self) -> "AsyncGeneratorClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _task_is_cancelled() -> bool:
    """Whether somebody asked this task to end; Python 3.10 does not tell."""
    return getattr(asyncio.current_task(), "cancelling", int)() > 0


async def _once(request: Any) -> AsyncIterator[Any]:
    yield request

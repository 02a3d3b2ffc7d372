"""Requests for a served model, from a process of its own: `python -m benchmarks.load ENDPOINT --clients 16 --seconds 10`.

With `--clients`, so many ask one after another without a pause: what is the most that the server gives? With `--rate`,
requests come at random times (Poisson) whether or not earlier ones were answered, and a latency counts from the moment
at which its request was due: a server that stalls cannot hide it by delaying the next question (coordinated omission).

Every request has another caption, so that nothing which the server keeps of a prompt helps it; `--prompts 5` asks for the
same five again and again. A request that is not answered within `--timeout` seconds is an error, so that a server which
stands still ends the load and does not hold it for ever. Prints one JSON line; Ctrl-C ends the load early, and what came
of it until then is told all the same.
"""

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import numpy as np
from tritonclient.grpc import service_pb2_grpc

from common.errors import ServerError
from components.ingest.digit_world.scenes import all_captions
from emuflow_client.wire import decode, encode

_ROOT = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 30.0
_SPARE_S = 60.0
"""For the load's process to start and to end."""
_LONGEST_S = 1800.0
"""Of a load that nobody ends."""


@dataclass
class Load:
    """What came of it; latencies in milliseconds, of the requests that were answered."""

    seconds: float = 0.0
    """From the first request to the last answer."""
    offered_per_s: float | None = None
    image_ms: list[float] = field(default_factory=list)
    """Until the final image."""
    preview_ms: list[float] = field(default_factory=list)
    """Until the first stage."""
    due_s: list[float] = field(default_factory=list)
    """When each of them was due, in seconds since the first request could be."""
    versions: dict[str, int] = field(default_factory=dict)
    """How many images each package drew, by its digest."""
    errors: list[str] = field(default_factory=list)

    @property
    def images_per_s(self) -> float:
        return len(self.image_ms) / self.seconds


def run_load(
    endpoint: str,
    model: str,
    *,
    seconds: float,
    clients: int = 0,
    rate: float = 0.0,
    seed: int = 0,
    previews: bool = True,
    prompts: int | None = None,
    timeout_s: float = _TIMEOUT_S,
) -> Load:
    """Ask from a new process. Exactly one of `clients` and `rate` (requests a second) is above 0; `prompts` is how many
    different ones there are, all captions where None.

    A request without an answer within `timeout_s` is one of the load's errors. Raises `ServerError` where the process itself
    does not end in time.
    """
    how = {"clients": clients, "rate": rate, "seed": seed, "timeout": timeout_s, "prompts": prompts}
    with _started(endpoint, model, seconds=seconds, previews=previews, **how) as process:
        try:
            # The request that connects may take all of its time, and so may the last one.
            return _result(process, seconds + 2 * timeout_s + _SPARE_S)
        except subprocess.TimeoutExpired as error:
            raise ServerError(
                f"a load of {seconds:g} s did not end within {error.timeout:g} s",
                where=endpoint,
                fix="look whether the machine is overloaded, and into the server's log",
            ) from None


@contextmanager
def load_until_ended(endpoint: str, model: str, *, clients: int = 0, rate: float = 0.0) -> Iterator[Callable[[], Load]]:
    """A load that goes on for as long as the body takes. The body calls what it is given to end it, and learns what came of
    it; that raises `ServerError` where the load had ended by itself."""
    with _started(endpoint, model, seconds=_LONGEST_S, clients=clients, rate=rate) as process:

        def end() -> Load:
            if process.poll() is not None:
                raise ServerError("the load ended before it was told to", where=endpoint, fix="see its messages above")
            process.send_signal(signal.SIGINT)
            return _result(process, _TIMEOUT_S + _SPARE_S)

        yield end


@contextmanager
def _started(
    endpoint: str, model: str, *, previews: bool = True, **how: float | None
) -> Iterator[subprocess.Popen[str]]:
    """A load in a process of its own, which is gone after the block."""
    command = [sys.executable, "-m", "benchmarks.load", endpoint, "--model", model]
    for name, value in how.items():
        command += [] if value is None else [f"--{name}", str(value)]
    command += [] if previews else ["--without-previews"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


def _result(process: subprocess.Popen[str], within_s: float) -> Load:
    """What it printed at its end. Raises `TimeoutExpired` where that does not come within so many seconds, and
    `CalledProcessError` where it failed."""
    output, _ = process.communicate(timeout=within_s)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Load(**json.loads(output.splitlines()[-1]))


class _Asker:
    """Sends requests and keeps what came of them."""

    def __init__(
        self,
        stub: service_pb2_grpc.GRPCInferenceServiceStub,
        model: str,
        prompts: Sequence[str],
        *,
        previews: bool,
        timeout_s: float,
    ):
        self._stub, self._model, self._prompts, self._previews = stub, model, prompts, previews
        self._timeout_s = timeout_s
        self.load, self._sent = Load(), 0
        self.start = time.perf_counter()
        self.is_over = False
        """Nothing more is asked; what was asked is waited for."""

    async def ask(self, due: float) -> None:
        """One request, due at `due` by `time.perf_counter`."""
        number, self._sent = self._sent, self._sent + 1
        prompt = self._prompts[number % len(self._prompts)]
        request = encode(self._model, prompt, {"seed": number, "previews": self._previews})

        async def requests():
            yield request

        preview = image = final = error = None
        try:
            async for message in self._stub.ModelStreamInfer(requests(), timeout=self._timeout_s):
                if message.error_message:
                    error = message.error_message  # to the stream's end: one that is cut off costs Triton memory
                    continue
                preview = time.perf_counter() if preview is None else preview
                result = decode(message.infer_response)
                if result.final:
                    image, final = time.perf_counter(), result
        except grpc.aio.AioRpcError as error:
            self.load.errors.append(str(error.code()))
            return
        if error is not None or preview is None or image is None or final is None:
            self.load.errors.append(error or "the stream ended without a final image")
            return
        self.load.preview_ms.append(1000 * (preview - due))
        self.load.image_ms.append(1000 * (image - due))
        self.load.due_s.append(due - self.start)
        self.load.versions[final.version] = self.load.versions.get(final.version, 0) + 1


async def _in_turn(asker: _Asker, clients: int, end: float) -> None:
    async def client() -> None:
        while time.perf_counter() < end and not asker.is_over:
            await asker.ask(time.perf_counter())

    await asyncio.gather(*(client() for _ in range(clients)))


async def _at_random(asker: _Asker, due: Sequence[float]) -> None:
    running: set[asyncio.Task] = set()
    for moment in due:
        await asyncio.sleep(max(0.0, asker.start + moment - time.perf_counter()))
        if asker.is_over:
            break
        task = asyncio.create_task(asker.ask(asker.start + moment))
        running.add(task)
        task.add_done_callback(running.discard)  # half an hour of tasks that are done would fill the memory
    await asyncio.gather(*running)


async def _main(chosen: argparse.Namespace) -> Load:
    async with grpc.aio.insecure_channel(chosen.endpoint) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        prompts = np.random.default_rng(chosen.seed).permutation(all_captions())[: chosen.prompts].tolist()
        asker = _Asker(stub, chosen.model, prompts, previews=not chosen.without_previews, timeout_s=chosen.timeout)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, lambda: setattr(asker, "is_over", True))
        await asker.ask(time.perf_counter())  # connects
        asker.load = Load()
        asker.start = time.perf_counter()
        if chosen.clients:
            await _in_turn(asker, chosen.clients, asker.start + chosen.seconds)
        else:
            gaps = np.random.default_rng(chosen.seed).exponential(
                1 / chosen.rate, int(2 * chosen.rate * chosen.seconds) + 9
            )
            due = gaps.cumsum()
            await _at_random(asker, due[due < chosen.seconds].tolist())
            asker.load.offered_per_s = chosen.rate
        asker.load.seconds = time.perf_counter() - asker.start
    return asker.load


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Ask a served model for images, and tell how long it took.")
    parser.add_argument("endpoint", help="host:port of Triton's gRPC service")
    parser.add_argument("--model", default="generator")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=0, help="so many ask without a pause")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second, at random times")
    parser.add_argument("--without-previews", action="store_true", help="ask for the image alone")
    parser.add_argument("--seed", type=int, default=0, help="of the times, and of the order of the prompts")
    parser.add_argument("--prompts", type=int, help="so many different ones; all captions, if it is not given")
    parser.add_argument("--timeout", type=float, default=_TIMEOUT_S, help="seconds until a request is given up")
    chosen = parser.parse_args(arguments)
    if (chosen.clients > 0) == (chosen.rate > 0):
        parser.error("name either --clients or --rate")
    print(json.dumps(asdict(asyncio.run(_main(chosen)))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

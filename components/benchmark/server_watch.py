"""What the server itself tells of an arm: Triton's counters of its requests, and the memory of the processes that hold it."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ServerError

if TYPE_CHECKING:
    from psutil import Process

_ASKING_S = 10.0


@dataclass(frozen=True)
class Counters:
    """Of a model since it was loaded."""

    requests: int
    queue_ms: float
    """In Triton's own queue, of all requests together."""
    compute_ms: float
    """In the call that hands a request to the package, which answers it later: of all requests together."""

    def mean_since(self, earlier: "Counters") -> tuple[float | None, float | None]:
        """Queue and compute milliseconds of a request since then; `None` where there was none."""
        requests = self.requests - earlier.requests
        if requests <= 0:
            return None, None
        return (self.queue_ms - earlier.queue_ms) / requests, (self.compute_ms - earlier.compute_ms) / requests


class ServerWatch:
    """Reads a running server from outside of what is timed."""

    def __init__(self, endpoint: str, pid: int):
        """`pid` is the process of which the server and its models' processes are descendants."""
        from tritonclient.grpc import InferenceServerClient

        self._client, self._pid = InferenceServerClient(endpoint), pid

    def counters(self, model: str) -> Counters:
        """Raises `ServerError` where the server does not answer."""
        from tritonclient.utils import InferenceServerException

        try:
            told = self._client.get_inference_statistics(model, client_timeout=_ASKING_S)
        except InferenceServerException as error:
            raise ServerError(f"the server tells nothing of model '{model}': {error}") from error
        assert told is not None, "an error is raised in its place"
        found = [version.inference_stats for version in told.model_stats]
        return Counters(
            requests=sum(each.success.count + each.fail.count for each in found),
            queue_ms=sum(each.queue.ns for each in found) / 1e6,
            compute_ms=sum(each.compute_input.ns + each.compute_infer.ns + each.compute_output.ns for each in found)
            / 1e6,
        )

    def processes(self, model: str) -> set[tuple[int, float]]:
        """Process id and start (seconds since 1970) of each of `model`'s copies, which differ once one was started again;
        empty where this machine tells nothing."""
        import psutil

        with contextlib.suppress(psutil.Error):
            return {(process.pid, process.create_time()) for process in self._copies(model)}
        return set()

    def _copies(self, model: str) -> list["Process"]:
        import psutil

        return [each for each in psutil.Process(self._pid).children(recursive=True) if _holds(each.cmdline(), model)]

    def memory_mb(self, model: str) -> float | None:
        """Of the processes of `model`'s copies, in MiB: what is theirs alone, or where this machine does not tell that to
        us, all that is resident; `None` where it tells nothing."""
        import psutil

        try:
            own = self._copies(model)
            try:
                total = sum(process.memory_full_info().uss for process in own)
            except psutil.AccessDenied:
                total = sum(process.memory_info().rss for process in own)
        except psutil.Error:
            return None
        return round(total / 2**20, 1) if total else None

    def cpu_s(self) -> float | None:
        """Processor time that this process and the server's processes had so far; `None` where this machine does not
        tell it, or the server ended."""
        import psutil

        total = 0.0
        try:
            server = psutil.Process(self._pid)
            for process in (psutil.Process(), server, *server.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    total += times.user + times.system
        except psutil.Error:
            return None
        return total

    def close(self) -> None:
        self._client.close()


def _holds(command: list[str], model: str) -> bool:
    """Whether this is a process of Triton's Python backend for `model`: `stub REPOSITORY/MODEL/VERSION/model.py …`."""
    return len(command) > 1 and Path(command[1]).name == "model.py" and Path(command[1]).parent.parent.name == model

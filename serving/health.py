"""Whether a served model still answers: a server may run, say that it is ready, and answer nobody any more.

Triton 2.51 was seen to do so after thousands of cancelled requests. The question draws nothing and waits for nobody: the
model answers it before all that waits, with how long ago anything moved.
"""

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_ASK_TIMEOUT_S = 5.0
_PROMPT = b"health"
_REFUSAL = re.compile(r"^[A-Z_]+: ")
"""A model's own errors begin with their type; Triton says of one whose process has gone that its stub is not healthy."""
_NOT_LOADED = re.compile(r"unknown model|not at ready state")


class Health:
    """Watches one model of a server, by questions that are at least `every_s` seconds apart."""

    def __init__(
        self,
        endpoint: Callable[[], str],
        model: str,
        *,
        stalled_after_s: float,
        every_s: float = 10.0,
        now: Callable[[], float] = time.monotonic,
    ):
        """`endpoint` gives `host:port` of the server's gRPC service, which may change when it is started again."""
        self._endpoint, self._model = endpoint, model
        self._stalled_after_s, self._every_s, self._now = stalled_after_s, min(every_s, stalled_after_s / 3), now
        self.begin()

    def begin(self) -> None:
        """The server was started, or given another package: what was before does not count."""
        self._answered_at = self._asked_at = self._now()

    def still_s(self) -> float | None:
        """How long nothing has been answered, in seconds, where that is longer than it may be; `None` where it is not.

        A model that is not loaded is none that stands still: to start the server again would not bring it back, to load it
        does.
        """
        if self._now() - self._asked_at < self._every_s:
            return None
        self._asked_at = self._now()
        movement = ask(self._endpoint(), self._model, timeout_s=min(_ASK_TIMEOUT_S, self._stalled_after_s))
        if movement is not None:
            self._answered_at = self._now()
        still_s = self._now() - self._answered_at if movement is None else movement.still_s
        return still_s if still_s >= self._stalled_after_s else None


@dataclass(frozen=True)
class Movement:
    """What a model has to do, and how long none of it has moved."""

    under_way: int = 0
    still_s: float = 0.0
    loaded: bool = True
    """Whether the server has such a model."""


def ask(endpoint: str, model: str, *, timeout_s: float) -> Movement | None:
    """What `model` has to do; `None` where it does not answer within `timeout_s`, or Triton answers in its place.

    The model's own refusal is an answer, of one that has nothing to do, and so is an image of a package from before this
    question. Of a model that is not loaded Triton says so.
    """
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    request = service_pb2.ModelInferRequest(model_name=model)  # pyright: ignore[reportAttributeAccessIssue]
    request.parameters["health"].bool_param = True
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    request.raw_input_contents.append(struct.pack("<I", len(_PROMPT)) + _PROMPT)  # Triton's BYTES: the length first
    with grpc.insecure_channel(endpoint) as channel:
        answers = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(
            iter([request]), timeout=timeout_s
        )
        try:
            told = [_read(answer) for answer in answers]  # to its end: what is dropped before leaves memory in Triton
        except grpc.RpcError:
            return None
    return told[0] if told else None


def _read(answer: Any) -> Movement | None:
    """What a response tells; `None` of an error that is not the model's own."""
    if answer.error_message:
        if _NOT_LOADED.search(answer.error_message):
            return Movement(loaded=False)
        return Movement() if _REFUSAL.match(answer.error_message) else None
    response = answer.infer_response
    contents = dict(zip((output.name for output in response.outputs), response.raw_output_contents, strict=True))
    told = json.loads(contents["timings"][4:]) if "timings" in contents else {}
    return Movement(told.get("under_way", 0), told.get("still_s", 0.0))

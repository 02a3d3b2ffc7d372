"""Whether a served model still answers: a server may run, say that it is ready, and answer nobody any more.

Triton 2.51 was seen to do so after thousands of cancelled requests. The question draws nothing and waits for nobody: the
model answers it before all that waits, with how long ago anything moved. A model may have several copies, each a process
of its own, and Triton chooses which one it asks: an answer says which one it is from, and of how many.
"""

import json
import re
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_ASK_TIMEOUT_S = 5.0
_QUESTIONS = 4
"""For each copy of a model. Triton hands requests to its copies nearly in turn, and where it is busy nearly at random: one of
them may be missed in a round, but none that takes requests in all rounds of a minute."""
_PROMPT = b"health"
_REFUSAL = re.compile(r"^[A-Z_]+: ")
"""A model's own errors begin with their type; Triton says of one whose process has gone that its stub is not healthy."""
_NOT_LOADED = re.compile(r"unknown model|not at ready state")


class Health:
    """Watches all copies of one model of a server, by rounds of questions that are at least `every_s` seconds apart."""

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
        """The server was started: what was before does not count."""
        self._asked_at, self._copies = self._now(), _Copies()

    def still_s(self) -> float | None:
        """How long a copy of the model has not answered, or has moved nothing of what it has to do, in seconds, where that is
        longer than it may be; `None` where it is not.

        Silence counts from the first question without an answer. Where nobody asked for as long as a copy may be silent, as
        whoever asks was held up, it counts anew. A model that is not loaded is none that stands still: to start the server
        again would not bring it back, to load it does.
        """
        now = self._now()
        if now - self._asked_at < self._every_s:
            return None
        if now - self._asked_at >= self._stalled_after_s:
            self._copies.forgive()
        self._asked_at = now
        told = self._ask_all()
        self._copies.note(told, now)
        still_s = max([self._copies.silent_s(self._now()), *(movement.still_s for movement in told)])
        return still_s if still_s >= self._stalled_after_s else None

    def _ask_all(self) -> list["Movement"]:
        """What the copies tell, one answer of each that was reached. The first question without an answer is the last one of
        its round, so that a silent server holds nobody up for longer."""
        endpoint, timeout_s = self._endpoint(), min(_ASK_TIMEOUT_S, self._stalled_after_s)
        told: dict[Copy, Movement] = {}
        asked, copies = 0, 1
        while len(told) < copies and asked < _QUESTIONS * copies:
            movement = ask(endpoint, self._model, timeout_s=timeout_s)
            if movement is None:
                break
            told[movement.copy] = movement
            asked, copies = asked + 1, movement.copy.of
        return list(told.values())


class _Copies:
    """Since when each copy of the package that serves has been silent."""

    def __init__(self) -> None:
        self._package, self._count = "", 1
        self._known: set[str] = set()
        self._silent_since: dict[str | None, float] = {}
        """By name; under `None` those that have never been heard."""

    def note(self, told: list["Movement"], at: float) -> None:
        """All were asked at `at`, and these answered."""
        if told:
            latest = told[-1].copy
            if latest.package != self._package:  # it was replaced
                self._known, self._silent_since = set(), {}
            self._package, self._count = latest.package, latest.of
        heard = {movement.copy.name for movement in told if movement.copy.package == self._package}
        self._known |= heard
        silent = [*sorted(self._known - heard), *([None] if len(self._known) < self._count else [])]
        self._silent_since = {name: self._silent_since.get(name, at) for name in silent}

    def forgive(self) -> None:
        """What was not answered before does not count."""
        self._silent_since = {}

    def silent_s(self, now: float) -> float:
        """Of the one that has been silent for longest; 0 where none is."""
        return now - min(self._silent_since.values(), default=now)


@dataclass(frozen=True)
class Copy:
    """Which copy of a model answered."""

    name: str = ""
    of: int = 1
    """How many there are."""
    package: str = ""
    """The digest of the package that it is of."""


@dataclass(frozen=True)
class Movement:
    """What a copy of a model has to do, and how long none of it has moved."""

    under_way: int = 0
    still_s: float = 0.0
    loaded: bool = True
    """Whether the server has such a model."""
    copy: Copy = field(default=Copy(), compare=False)
    """A package from before copies had names says nothing of it, and is taken for its only one."""


def ask(endpoint: str, model: str, *, timeout_s: float) -> Movement | None:
    """What the copy of `model` that Triton chooses has to do; `None` where it does not answer within `timeout_s`, or Triton
    answers in its place.

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
    package = contents.get("package_digest", b"")[4:].decode()
    copy = Copy(told.get("copy", ""), told.get("copies", 1), package)
    return Movement(told.get("under_way", 0), told.get("still_s", 0.0), copy=copy)

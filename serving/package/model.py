"""The Triton model of a package (Python backend, decoupled): this file is copied to `1/model.py`.

One request gives a response after each stage: previews, then the final image. Requests that wait while others are drawn
are drawn together; where too many wait already, one more is refused at once as UNAVAILABLE. One that cannot be answered
gets a typed error and harms no other; one that its caller cancelled or whose deadline has passed gets no further stage,
and a group that nobody waits for stops before its next one.
"""

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  (Triton provides it)

from .runtime.bls import asking
from .runtime.generator import Generator, Image, Prepared
from .runtime.graphs import graph_models
from .runtime.grouping import Groups, QueueFull
from .runtime.outbox import Outbox
from .runtime.png import png
from .runtime.progress import Progress
from .runtime.requests import Request, RequestError, parse
from .runtime.watch import Watch

INPUTS = ("prompt", "seed", "coarse_steps", "temperature", "guidance", "size", "format", "deadline_ms")

_LOOK_S = 0.02
"""How long a deadline may have passed before it is noticed, or a caller have gone where a dozen wait; where hundreds do,
up to a second."""


class _Caller:
    """A request that was taken: what is to be drawn, and whom to tell."""

    def __init__(self, request: Request, prepared: Prepared, sender: Any, outbox: Outbox, progress: Progress):
        self.request, self.prepared, self._sender, self._outbox = request, prepared, sender, outbox
        self._progress = progress
        self.waits = True
        self._gone = False
        self._sending, self._answered = threading.Lock(), False

    def look(self) -> bool:
        """Ask Triton whether the caller has gone, never after the last answer, with which Triton forgets the request; and
        tell one whose time is up, also while others are drawn. Returns whether an answer is still wanted."""
        with self._sending:
            self._gone = self._gone or (not self._answered and bool(self._sender.is_cancelled()))
        return self.still_waits()

    def still_waits(self) -> bool:
        """Whether an answer is still wanted; tells a caller that has gone or whose time is up so, once."""
        if self.waits and self._gone:
            self._give_up("CANCELLED: the caller has gone", pb_utils.TritonError.CANCELLED)
        elif self.waits and self.prepared.too_late:
            late = f"DEADLINE_EXCEEDED: there was no image within {self.request.deadline_ms} ms"
            self._give_up(late, pb_utils.TritonError.CANCELLED)
        return self.waits

    def send(self, response: Any, *, final: bool) -> None:
        """Hand a stage to the outbox; nothing waits for more after the final one."""
        self.waits = not final
        self._outbox.put(lambda: self._send(response, final))

    def fail(self, message: str) -> None:
        if self.waits:
            self._give_up(message, pb_utils.TritonError.INTERNAL)

    def _send(self, response: Any, final: bool) -> None:
        with self._sending:
            if self._answered:  # it was given up meanwhile
                return
            self._answered = final
            try:
                self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0)
            except Exception as error:  # noqa: BLE001 - the others are to get theirs
                self.waits, self._answered = False, True
                _fail(self._sender, _internal(error), pb_utils.TritonError.INTERNAL)
            self._progress.move()
            if self._answered:
                self._progress.end()

    def _give_up(self, message: str, code: Any) -> None:
        self.waits = False
        self._outbox.put(lambda: self._refuse(message, code))

    def _refuse(self, message: str, code: Any) -> None:
        with self._sending:
            if not self._answered:
                self._answered = True
                _fail(self._sender, message, code)
                self._progress.end()


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the package and draw one image, so that a broken package fails here and not at its first request.

        Graphs that are Triton models cannot be asked yet: whoever loaded them has tried each of them before this model.
        """
        package = Path(args["model_repository"])
        self._digest = hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()
        self._copy, self._copies = args["model_instance_name"], _copies(json.loads(args["model_config"]))
        models = graph_models(package)
        self._generator = Generator(package / args["model_version"], None if models is None else asking(models))
        if models is None:
            self._generator.check()
        self._outbox, self._progress = Outbox(), Progress()
        self._watch = Watch(_Caller.look, glance=_Caller.still_waits, every_s=_LOOK_S, failed=_unseen)
        self._groups = Groups(
            self._answer,
            lambda caller: caller.prepared.options,
            largest=self._generator.largest_group,
            largest_queue=self._generator.largest_queue,
            wanted=lambda caller: caller.waits,
        )

    def execute(self, requests: list[Any]) -> None:
        """Take the requests up; the groups' thread answers each on its own response sender.

        One that asks for the model's health is answered here, whatever waits.
        """
        for request in requests:
            sender = request.get_response_sender()
            try:
                parameters = json.loads(request.parameters() or "{}")
                if parameters.get("health") is True:
                    sender.send(self._health(), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
                    continue
                fields = {name: _tensor(request, name) for name in INPUTS}
                asked = parse(fields, self._generator.limits, parameters)
                caller = _Caller(asked, self._generator.prepare(asked), sender, self._outbox, self._progress)
                self._take(caller)
            except RequestError as error:
                _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
            except QueueFull as error:
                _fail(sender, f"UNAVAILABLE: {error}", pb_utils.TritonError.UNAVAILABLE)
            except Exception as error:  # noqa: BLE001 - whatever a request causes, the model goes on serving the others
                _fail(sender, _internal(error), pb_utils.TritonError.INTERNAL)

    def _take(self, caller: _Caller) -> None:
        """Raises `QueueFull`."""
        self._progress.begin()
        try:
            self._groups.add(caller)
        except BaseException:
            self._progress.end()
            raise
        self._watch.add(caller)

    def finalize(self) -> None:
        """Answer what was taken, then end."""
        self._groups.close()
        self._watch.close()
        self._outbox.close()

    def _answer(self, group: list[_Caller]) -> None:
        """Draw a group, and tell those who still wait for it where that fails."""
        try:
            with self._progress.drawing():
                self._draw(_waiting(group))
        except Exception as error:  # noqa: BLE001 - as in `execute`, and the thread must go on
            for caller in group:
                caller.fail(_internal(error))
        finally:
            for caller in group:
                self._watch.remove(caller)

    def _draw(self, wanted: list[_Caller]) -> None:
        """Send every stage to those who still wait for it."""
        stages = self._generator.draw([caller.prepared for caller in wanted]) if wanted else ()
        for images in stages:
            self._progress.move()
            if not _waiting(wanted):
                return
            for caller, image in zip(wanted, images, strict=True):
                if caller.waits:
                    caller.send(self._response(caller.request, image), final=image.stage == "final")

    def _health(self) -> Any:
        """What this copy has to do, and which of how many it is: Triton chooses the one that it asks."""
        state = {
            "under_way": self._progress.under_way,
            "still_s": self._progress.still_s(),
            "copy": self._copy,
            "copies": self._copies,
        }
        digest, told = (np.array([text.encode()], dtype=object) for text in (self._digest, json.dumps(state)))
        return pb_utils.InferenceResponse([pb_utils.Tensor("package_digest", digest), pb_utils.Tensor("timings", told)])

    def _response(self, asked: Request, image: Image) -> Any:
        as_png = asked.format == "png"
        outputs = {
            **({"encoded": np.array([png(image.pixels)], dtype=object)} if as_png else {"image": image.pixels}),
            "stage": np.array([image.stage.encode()], dtype=object),
            "final": np.array([image.stage == "final"]),
            "package_digest": np.array([self._digest.encode()], dtype=object),
            "seed": np.array([asked.seed], dtype=np.int64),
            "timings": np.array([json.dumps(image.timings_ms).encode()], dtype=object),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


def _unseen(_caller: _Caller, error: Exception) -> None:
    """A caller of whom Triton does not tell whether it has gone is answered like the others; a deadline is still kept
    before each stage."""
    pb_utils.Logger.log_error(f"a request is not watched any more: {_internal(error)}")


def _waiting(group: list[_Caller]) -> list[_Caller]:
    """Those who still want an answer; the others are told that they have gone."""
    return [caller for caller in group if caller.still_waits()]


def _copies(config: dict[str, Any]) -> int:
    """How many processes Triton starts of a model, one of which this is."""
    return sum(group["count"] for group in config["instance_group"])


def _tensor(request: Any, name: str) -> np.ndarray | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _internal(error: Exception) -> str:
    return f"INTERNAL: {type(error).__name__}: {error}"


def _fail(sender: Any, message: str, code: Any) -> None:
    error = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    try:
        sender.send(error, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    except Exception as fault:  # noqa: BLE001 - its caller is out of reach; the others are not
        pb_utils.Logger.log_error(f"an answer could not be sent: {fault}")

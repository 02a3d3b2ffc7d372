"""The Triton model of a package (Python backend, decoupled): this file is copied to `1/model.py`.

One request gives a response after each stage: previews, then the final image. A request that cannot be answered
gets a typed error and harms no other; one that its caller cancelled stops before its next stage.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # pyright: ignore[reportMissingImports]  (Triton provides it)

from .runtime.generator import Generator, Image
from .runtime.requests import Request, RequestError, parse

INPUTS = ("prompt", "seed", "coarse_steps", "temperature")


class _CancelledError(Exception):
    """The caller of the request has gone."""


class TritonPythonModel:
    """The class that Triton's Python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the package and draw one image, so that a broken package fails here and not at its first request."""
        package = Path(args["model_repository"])
        self._digest = hashlib.sha256((package / "manifest.json").read_bytes()).hexdigest()
        self._generator = Generator(package / args["model_version"])
        self._generator.check()

    def execute(self, requests: list[Any]) -> None:
        """Answer each request on its own response sender."""
        for request in requests:
            self._answer(request, request.get_response_sender())

    def _answer(self, request: Any, sender: Any) -> None:
        try:
            asked = parse({name: _tensor(request, name) for name in INPUTS}, self._generator.limits)
            _stop_if_cancelled(sender)
            for image in self._generator.images(asked):
                _stop_if_cancelled(sender)
                flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if image.stage == "final" else 0
                sender.send(self._response(asked, image), flags=flags)
        except RequestError as error:
            _fail(sender, str(error), pb_utils.TritonError.INVALID_ARG)
        except _CancelledError:
            _fail(sender, "CANCELLED: the caller has gone", pb_utils.TritonError.CANCELLED)
        except Exception as error:  # noqa: BLE001 - whatever a request causes, the model goes on serving the others
            _fail(sender, f"INTERNAL: {type(error).__name__}: {error}", pb_utils.TritonError.INTERNAL)

    def _response(self, asked: Request, image: Image) -> Any:
        outputs = {
            "image": image.pixels,
            "stage": np.array([image.stage.encode()], dtype=object),
            "final": np.array([image.stage == "final"]),
            "package_digest": np.array([self._digest.encode()], dtype=object),
            "seed": np.array([asked.seed], dtype=np.int64),
            "timings": np.array([json.dumps(image.timings_ms).encode()], dtype=object),
        }
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])


def _tensor(request: Any, name: str) -> np.ndarray | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def _stop_if_cancelled(sender: Any) -> None:
    if sender.is_cancelled():
        raise _CancelledError


def _fail(sender: Any, message: str, code: Any) -> None:
    error = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(error, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

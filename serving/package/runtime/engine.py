"""The model on onnxruntime: the `Session` of the decode loop, from the graphs of a package."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import onnxruntime

from .decoding.session import DrawImage, Prefix


class EngineSession:
    """A package's ONNX graphs: they share nothing with any other session of the process, and take one caller at a time.

    Where the image's grid is the sketch's own, there is no graph for details.
    """

    def __init__(self, folder: Path, config: Mapping, *, threads: int):
        """Load `folder/*.onnx`; `config` is the content of `generator.json`, `threads` the threads of one operator."""
        self.visual_vocabulary: int = config["visual_vocabulary"]
        rows, columns = config["coarse_grid"]
        self.coarse_grid = (rows, columns)
        self.has_details: bool = config["fine_grid"] != config["coarse_grid"]
        self._prefill, self._coarse, self._image_decoder = (
            load_graph(folder / f"{name}.onnx", threads) for name in ("prefill", "coarse", "image_decoder")
        )
        self._fine = load_graph(folder / "fine.onnx", threads) if self.has_details else None
        self._threads, self._draw_path = threads, folder / "draw.onnx"
        self.draw_image: DrawImage | None = self._draw_at_once if self._draw_path.exists() else None
        shape = config["plan_noise_shape"]
        self.plan_noise_shape: tuple[int, int] | None = None if shape is None else (shape[0], shape[1])

    def prefill(self, text_ids: np.ndarray, plan_noise: np.ndarray | None = None) -> Prefix:
        if plan_noise is None:
            return _run(self._prefill, "past", text_ids=text_ids), None, None
        feeds = {"text_ids": text_ids, "plan_noise": plan_noise}
        past, plan_ids, plan_logits = self._prefill.run(["past", "plan_ids", "plan_logits"], feeds)
        return np.asarray(past), np.asarray(plan_ids), np.asarray(plan_logits)

    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        plan = {} if plan_ids is None else {"plan_ids": plan_ids}
        return _run(self._coarse, "logits", past=past, coarse_ids=coarse_ids, **plan)

    def fine(
        self, past: np.ndarray, coarse_ids: np.ndarray, fine_ids: np.ndarray, plan_ids: np.ndarray | None
    ) -> np.ndarray:
        assert self._fine is not None, "this model draws no details"
        plan = {} if plan_ids is None else {"plan_ids": plan_ids}
        return _run(self._fine, "logits", past=past, coarse_ids=coarse_ids, fine_ids=fine_ids, **plan)

    @cached_property
    def _draw(self) -> onnxruntime.InferenceSession:
        """Loaded when it is first asked: where previews are shown it never is."""
        return load_graph(self._draw_path, self._threads)

    def _draw_at_once(
        self, text_ids: np.ndarray, plan_noise: np.ndarray | None, sketch_noise: np.ndarray
    ) -> np.ndarray:
        plan = {} if plan_noise is None else {"plan_noise": plan_noise}
        return _run(self._draw, "pixels", text_ids=text_ids, sketch_noise=sketch_noise, **plan)

    def decode_image(self, codes: np.ndarray) -> np.ndarray:
        return _run(self._image_decoder, "pixels", codes=codes)


def _run(session: onnxruntime.InferenceSession, output: str, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(session.run([output], inputs)[0])


def load_graph(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """One graph on the CPU, with `threads` for an operator."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # A spinning pool takes the cores from the other models of the server while this one has nothing to do.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

"""The model as ONNX graphs: the `Session` of the decode loop, from those of a package."""

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from .decoding.loop import stage_name
from .decoding.session import DrawImage, Prefix
from .graphs import Graph, Load
from .prefixes import Known, PrefixCache
from .providers import load_graph
from .shape import detail_stages


class EngineSession:
    """A package's ONNX graphs: they share nothing with any other session of the process, and take one caller at a time.

    There is a graph for each stage of details, and none where the image's grid is the sketch's own.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping,
        *,
        threads: int,
        provider: str = "cpu",
        prefix_cache_bytes: int = 0,
        scores_plans: bool = False,
        load: Load | None = None,
    ):
        """Load `folder/*.onnx`; `config` is the content of `generator.json`, `threads` the threads of one operator on a CPU,
        `provider` what computes, as `providers.load_graph` takes it. Another `load` finds the graphs elsewhere, by their
        files' names.

        Prompts that come again are read once, as far as `prefix_cache_bytes` reach. The logits of plans, which no image
        needs, are there with `scores_plans` alone; nothing is kept then.
        """
        self.visual_vocabulary: int = config["visual_vocabulary"]
        rows, columns = config["coarse_grid"]
        self.coarse_grid = (rows, columns)
        self.detail_stages = detail_stages(config)
        self._load = load = load or partial(load_graph, threads=threads, provider=provider)
        self._coarse, self._image_decoder = (load(folder / f"{name}.onnx") for name in ("coarse", "image_decoder"))
        stages = range(1, self.detail_stages + 1)
        self._fine = [load(folder / f"{stage_name(stage)}.onnx") for stage in stages]
        self._draw_path = folder / "draw.onnx"
        self.draw_image: DrawImage | None = self._draw_at_once if self._draw_path.exists() else None
        shape = config["plan_noise_shape"]
        self.plan_noise_shape: tuple[int, int] | None = None if shape is None else (shape[0], shape[1])
        self._read = (
            _Scorer(folder, load)
            if scores_plans
            else _Reader(folder, load, has_plan=shape is not None, cache_bytes=prefix_cache_bytes)
        )

    def prefill(self, text_ids: np.ndarray, plan_noise: np.ndarray | None = None) -> Prefix:
        return self._read(text_ids, plan_noise)

    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        plan = {} if plan_ids is None else {"plan_ids": plan_ids}
        return _run(self._coarse, "logits", past=past, coarse_ids=coarse_ids, **plan)

    def fine(
        self,
        past: np.ndarray,
        coarse_ids: np.ndarray,
        fine_ids: np.ndarray,
        plan_ids: np.ndarray | None,
        stage: int = 1,
    ) -> np.ndarray:
        plan = {} if plan_ids is None else {"plan_ids": plan_ids}
        return _run(self._fine[stage - 1], "logits", past=past, coarse_ids=coarse_ids, fine_ids=fine_ids, **plan)

    @cached_property
    def _draw(self) -> Graph:
        """Loaded when it is first asked: who scores or calibrates never asks."""
        return self._load(self._draw_path)

    def load_draw(self) -> None:
        """Load now what is otherwise loaded when it is first asked, for a folder in whose place another one may stand then."""
        if self.draw_image is not None:
            _ = self._draw

    def _draw_at_once(
        self, text_ids: np.ndarray, plan_noise: np.ndarray | None, sketch_noise: np.ndarray
    ) -> np.ndarray:
        plan = {} if plan_noise is None else {"plan_noise": plan_noise}
        return _run(self._draw, "pixels", text_ids=text_ids, sketch_noise=sketch_noise, **plan)

    def decode_image(self, codes: np.ndarray) -> np.ndarray:
        return _run(self._image_decoder, "pixels", codes=codes)


class _Scorer:
    """Reads prompts with the whole graph `prefill`."""

    def __init__(self, folder: Path, load: Load):
        self._prefill = load(folder / "prefill.onnx")

    def __call__(self, text_ids: np.ndarray, plan_noise: np.ndarray | None) -> Prefix:
        if plan_noise is None:
            return _run(self._prefill, "past", text_ids=text_ids), None, None
        feeds = {"text_ids": text_ids, "plan_noise": plan_noise}
        past, plan_ids, plan_logits = self._prefill.run(["past", "plan_ids", "plan_logits"], feeds)
        return np.asarray(past), np.asarray(plan_ids), np.asarray(plan_logits)


class _Reader:
    """Reads prompts, and keeps what they say; a plan is drawn from that and from noise."""

    def __init__(self, folder: Path, load: Load, *, has_plan: bool, cache_bytes: int):
        self._plan = load(folder / "plan.onnx") if has_plan else None
        # Without a plan, `prefill` gives nothing but what the prompt says.
        self._prompt = load(folder / ("prompt.onnx" if has_plan else "prefill.onnx"))
        self._outputs = ["past", "plan_start"] if has_plan else ["past"]
        self._cache = PrefixCache(cache_bytes)

    def __call__(self, text_ids: np.ndarray, plan_noise: np.ndarray | None) -> Prefix:
        past, *start = self._read(text_ids)
        if self._plan is None or plan_noise is None:
            return past, None, None
        return past, _run(self._plan, "plan_ids", plan_start=start[0], plan_noise=plan_noise), None

    def _read(self, text_ids: np.ndarray) -> Known:
        """What each prompt says, int64 [batch, text_length]; those that are not known yet are read together."""
        keys = [row.tobytes() for row in text_ids]
        found = {key: self._cache.get(key) for key in keys}
        known = {key: row for key, row in found.items() if row is not None}
        fresh = [key for key, row in found.items() if row is None]
        if fresh:
            rows = text_ids[[keys.index(key) for key in fresh]]
            read = tuple(np.asarray(array) for array in self._prompt.run(self._outputs, {"text_ids": rows}))
            for number, key in enumerate(fresh):
                known[key] = row = _row(read, number)
                self._cache.put(key, row)
            if len(fresh) == len(keys):
                return read
        parts = zip(*(known[key] for key in keys), strict=True)
        return tuple(np.concatenate(part, axis) for part, axis in zip(parts, _BATCH_AXES, strict=False))


_BATCH_AXES = (2, 0)
"""Of `past` and of `plan_start`."""


def _row(read: Known, number: int) -> Known:
    """What one prompt of a batch says, in arrays of its own: the batch's are not to be kept for its sake."""
    return tuple(np.take(array, [number], axis) for array, axis in zip(read, _BATCH_AXES, strict=False))


def _run(graph: Graph, output: str, **inputs: np.ndarray) -> np.ndarray:
    return np.asarray(graph.run([output], inputs)[0])

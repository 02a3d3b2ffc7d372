"""What goes into the layers when the decode loop runs: graph inputs, and the activation maxima that SmoothQuant folds by.

Only the blocks' layers are folded. The ranges of all that is quantized are looked at in the graphs (`ranges.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import QuantizationError
from model.decoding.loop import DecodingOptions, grow, plan_noise, refine_sketch, stage_name
from model.decoding.samplers import streams
from model.decoding.session import Prefix
from model.quantization.layers import block_layers
from model.transformer.model import Generator
from model.transformer.session import TorchSession

Feeds = dict[str, list[dict[str, np.ndarray]]]
"""Inputs of the graphs of an engine, by their names, one mapping for each call."""


@dataclass
class Observation:
    """What was seen while decoding the calibration prompts."""

    feeds: Feeds = field(default_factory=lambda: defaultdict(list))
    maxima: dict[str, Tensor] = field(default_factory=dict)
    """Largest absolute input of each of the blocks' layers over all graphs, [in_features], by the layer's name."""


class RecordingSession:
    """A torch `TokenSession` that keeps the inputs of every call."""

    def __init__(self, generator: Generator, feeds: Feeds):
        self._session, self.feeds = TorchSession(generator), feeds
        self.visual_vocabulary, self.coarse_grid = self._session.visual_vocabulary, self._session.coarse_grid
        self.detail_stages, self.plan_noise_shape = self._session.detail_stages, self._session.plan_noise_shape

    def prefill(self, text_ids: np.ndarray, plan_noise: np.ndarray | None = None) -> Prefix:
        prefix, plan = self._session.prefill(text_ids, plan_noise), self._session.generator.plan
        # One code that another precision drew otherwise would change all that follow: every precision is to draw these.
        if plan is not None and prefix[1] is not None:
            plan_noise = plan.prior.certain(torch.from_numpy(prefix[1])).numpy()
        self._keep("prefill", text_ids=text_ids, plan_noise=plan_noise)
        return prefix

    def coarse(self, past: np.ndarray, coarse_ids: np.ndarray, plan_ids: np.ndarray | None) -> np.ndarray:
        self._keep("coarse", past=past, coarse_ids=coarse_ids, plan_ids=plan_ids)
        return self._session.coarse(past, coarse_ids, plan_ids)

    def fine(
        self,
        past: np.ndarray,
        coarse_ids: np.ndarray,
        fine_ids: np.ndarray,
        plan_ids: np.ndarray | None,
        stage: int = 1,
    ) -> np.ndarray:
        self._keep(stage_name(stage), past=past, coarse_ids=coarse_ids, fine_ids=fine_ids, plan_ids=plan_ids)
        return self._session.fine(past, coarse_ids, fine_ids, plan_ids, stage)

    def _keep(self, graph: str, **inputs: np.ndarray | None) -> None:
        self.feeds[graph].append({name: array for name, array in inputs.items() if array is not None})


@torch.no_grad()
def observe(generator: Generator, prompts: Sequence[np.ndarray], options: DecodingOptions, seed: int) -> Observation:
    """Decode batches of prompts (int64 [n, text_length]) and watch the blocks' layers.

    Raises `QuantizationError` naming the first layer whose input is not finite, or always zero, or that saw none.
    """
    with watching(generator) as seen:
        session = RecordingSession(generator, seen.feeds)
        for batch, text_ids in enumerate(prompts):
            seeds = [seed + batch * 100_003 + row for row in range(len(text_ids))]
            random = streams(seeds)
            prefix = session.prefill(text_ids, plan_noise(session, options.plan_temperature, random))
            sketch = refine_sketch(session, prefix, options, random)
            *_, codes = grow(session, prefix, sketch, options, seeds, session.detail_stages)
            seen.feeds["image_decoder"].append({"codes": codes})
    return seen


@contextmanager
def watching(generator: Generator) -> Iterator[Observation]:
    """Note the largest inputs of the blocks' layers of whatever is computed meanwhile. Raises as `observe` does."""
    seen, linears = Observation(), dict(block_layers(generator))
    hooks = [linear.register_forward_pre_hook(_watch(name, seen)) for name, linear in linears.items()]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
    _refuse_useless_ranges(linears, seen.maxima)


def _watch(name: str, seen: Observation):
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest = inputs[0].abs().flatten(0, -2).amax(0)
        if not torch.isfinite(largest).all():
            raise QuantizationError(
                "its input is NaN or infinite on the calibration data",
                where=name,
                fix="check the checkpoint and the calibration samples",
            )
        seen.maxima[name] = torch.maximum(seen.maxima[name], largest) if name in seen.maxima else largest

    return hook


def _refuse_useless_ranges(layers: Iterable[str], maxima: dict[str, Tensor]) -> None:
    for name in layers:
        if name not in maxima:
            raise QuantizationError("it saw no calibration data", where=name, fix="calibrate with one prompt at least")
        if maxima[name].max() == 0:
            raise QuantizationError(
                "its input is zero on all calibration data, so it has no scale",
                where=name,
                fix="check the checkpoint and the calibration samples",
            )

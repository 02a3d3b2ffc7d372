"""The graphs of a compared checkpoint in fp32 or INT8, by the pipeline's own recipe for either kind of decoder."""

import copy
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
import onnx
import torch

from components.calibrate.engine import quantize_engine
from components.calibrate.settings import CalibrationSettings
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.decoding.loop import DecodingOptions, grow
from model.quantization.export_onnx import engine_graphs, export_graphs
from model.quantization.fuse import fuse_graphs
from model.quantization.inference import with_plain_tables
from model.quantization.observe import Feeds, Observation, RecordingSession, observe, watching
from model.quantization.smoothquant import fold_smoothing
from model.quantization.split import split_prefill
from model.quantization.static_int8 import quantizable_layers, quantize_graph
from model.tokenizers.visual import VisualTokenizer
from model.transformer.model import Generator

Precision = Literal["fp32", "int8"]
_SETTINGS = CalibrationSettings()
_KEPT_CELLS = 8
"""Of the cells that are drawn while calibrating, every n-th is kept: the graph's inputs grow with the cells so far."""


def export(
    generator: Generator, visual: VisualTokenizer, folder: Path, *, next_token: bool, prompts: Sequence[np.ndarray] = ()
) -> None:
    """Write the graphs that the decoders of a checkpoint need: in INT8 where there are `prompts` to calibrate with, batches
    int64 [n, text_length]; in fp32 otherwise."""
    config = generator.config
    graphs = engine_graphs(len(config.grids) - 1)
    names = (*graphs, *(("next", "sequence") if next_token else ()))
    if not prompts:
        export_graphs(with_plain_tables(generator), visual, folder, names=names)
    else:
        smoothed = copy.deepcopy(generator)
        seen = _observe(smoothed, prompts, next_token)
        fold_smoothing(smoothed, seen.maxima, _SETTINGS.smoothing_alpha)
        feeds = _observe(smoothed, prompts, next_token).feeds  # again: the fold changes what the graphs are fed
        with TemporaryDirectory() as fp32:
            export_graphs(with_plain_tables(smoothed), visual, Path(fp32), names=names)
            if next_token:
                _quantize_next_token(Path(fp32), folder, feeds)
            else:
                folder.rmdir()
                quantize_engine(_SETTINGS, Path(fp32), folder, feeds, graphs)
    if not next_token:
        fuse_graphs(folder, config.grids, config.visual_vocabulary)
        split_prefill(folder)


def _quantize_next_token(fp32: Path, folder: Path, feeds: Feeds) -> None:
    for name, fed in feeds.items():
        source = fp32 / f"{name}.onnx"
        layers = quantizable_layers(onnx.load(source), heads=_SETTINGS.quantize_heads)
        quantize_graph(source, folder / source.name, fed, layers)
    (fp32 / "coarse.onnx").rename(folder / "coarse.onnx")  # it is loaded, but not asked


def _observe(generator: Generator, prompts: Sequence[np.ndarray], next_token: bool) -> Observation:
    if not next_token:
        options = DecodingOptions(coarse_steps=_SETTINGS.coarse_steps, temperature=_SETTINGS.temperature)
        return observe(generator, prompts, options, _SETTINGS.seed)
    options = NextTokenOptions(temperature=_SETTINGS.temperature)
    with watching(generator) as seen:
        for number, text_ids in enumerate(prompts):
            seeds = [number * 100_003 + row for row in range(len(text_ids))]
            details = RecordingSession(generator, seen.feeds)
            sketch = continue_tokens(
                _RecordedCells(generator, seen.feeds), text_ids, generator.config.coarse_tokens, options, seeds
            )
            prefix = details.prefill(text_ids)
            *_, codes = grow(details, prefix, sketch, DecodingOptions(), seeds, details.detail_stages)
            seen.feeds["image_decoder"].append({"codes": codes})
    return seen


class _RecordedCells:
    """A `NextTokenSession` on torch that keeps the inputs of the graph `next`."""

    positions = None

    def __init__(self, generator: Generator, feeds: Feeds):
        self._generator, self._feeds = generator, feeds

    @torch.inference_mode()
    def next_logits(self, ids: np.ndarray, past: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        config = self._generator.config
        if past is None:
            past = self._generator.prefill(torch.from_numpy(ids)).past.numpy()
            ids = np.full((len(ids), 1), config.visual_vocabulary, dtype=np.int64)
        first = np.array([past.shape[-2] - config.text_length])
        if first[0] % _KEPT_CELLS == 0:
            self._feeds["next"].append({"past": past, "previous_ids": ids, "first": first})
        logits, present = self._generator.next_logits(*(torch.from_numpy(array) for array in (past, ids, first)))
        return logits.numpy(), present.numpy()

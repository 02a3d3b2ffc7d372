"""The best next-token decoder with its cells computed by torch, eager or compiled: is onnxruntime the faster engine for it?

The prompt, the details and the pixels are onnxruntime's as in the decoder that it is compared with; 64 of an image's 67
calls are the cells.
"""

import copy

import numpy as np
import torch
from torch import Tensor

from benchmarks.decoders import Decoder, Engine
from model.decoding.autoregressive import NextTokenOptions, continue_tokens
from model.decoding.loop import DecodingOptions, grow
from model.decoding.session import Prefix
from model.quantization.inference import with_plain_tables


def torch_decoder(engine: Engine, name: str, options: NextTokenOptions, *, compiled: bool, threads: int) -> Decoder:
    """`engine.autoregressive` with the cache, and torch for the cells. What is compiled takes every batch and length from one
    graph, but batch 1 has a graph of its own; it is compiled when it is first drawn with."""
    cells = TorchCells(engine, compiled=compiled)
    rows, columns = engine.session.coarse_grid
    stages = engine.session.detail_stages

    def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            sketch = continue_tokens(cells, text_ids, rows * columns, options, seeds)
        finally:
            torch.set_num_threads(before)
        assert cells.prefix is not None
        *_, codes = grow(engine.session, cells.prefix, sketch, DecodingOptions(), seeds, stages)
        return engine.session.decode_image(codes)

    return Decoder(name, engine.parameters, draw)


class TorchCells:
    """A `NextTokenSession` for the cells of an image's sketch, with the cache of keys and values."""

    positions = None
    prefix: Prefix | None = None
    """Of the prompts that were read last."""

    def __init__(self, engine: Engine, *, compiled: bool):
        self._engine = engine
        self._start = engine.generator.config.visual_vocabulary
        self._text = engine.generator.config.text_length
        generator = with_plain_tables(copy.deepcopy(engine.generator))
        self._next = torch.compile(generator.next_logits, dynamic=True) if compiled else generator.next_logits

    @torch.inference_mode()
    def next_logits(self, ids: np.ndarray, past: Tensor | None) -> tuple[np.ndarray, Tensor]:
        if past is None:
            self.prefix = self._engine.session.prefill(ids)
            past, ids = torch.from_numpy(self.prefix[0]), np.full((len(ids), 1), self._start, dtype=np.int64)
        first = torch.tensor([past.shape[-2] - self._text])
        logits, present = self._next(past, torch.from_numpy(ids), first)
        return logits.numpy(), present

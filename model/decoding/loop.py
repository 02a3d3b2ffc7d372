"""From a prompt to an image, coarse to fine: a sketch in a few parallel steps, then one pass for the details."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .samplers import gumbel_noise, sample, streams
from .schedule import known_after_step
from .session import Session


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How an image is drawn."""

    coarse_steps: int = 2
    """Parallel passes over the sketch."""
    temperature: float = 0.5
    """Sampling temperature of the sketch's first pass; it falls linearly over the passes. 0 is greedy."""
    fine_temperature: float = 0.0
    """Sampling temperature of the details."""
    top_k: int = 0
    """Only the k most likely tokens are drawn; 0 is all."""
    confidence_weight: float = 0.0
    """How much the surest tokens come first: 0 fixes tokens in random order, large values strictly by confidence.

    Confidence first draws the empty background first and leaves little to chance; random order keeps variety.
    """


@dataclass(frozen=True)
class Stage:
    """One finished stage: a preview, or the final image."""

    name: str
    """`coarse` or `final`."""
    pixels: np.ndarray
    """uint8 [batch, height, width, 3]."""
    seconds: float
    """Since the loop began."""


def generate(session: Session, text_ids: np.ndarray, options: DecodingOptions, seeds: list[int]) -> Iterator[Stage]:
    """Draw one image per prompt and yield each stage as it is done.

    `text_ids` int64 [batch, text_length]; `seeds` one per prompt: an image depends on its prompt, its seed and
    the options alone, not on the batch it is drawn in.
    """
    start = time.perf_counter()
    rows, columns = session.coarse_grid
    generators = streams(seeds)
    past = session.prefill(text_ids)
    sketch = refine_sketch(session, past, options, generators)
    yield Stage("coarse", session.decode_image(sketch.reshape(-1, rows, columns)), time.perf_counter() - start)
    details = draw_details(session, past, sketch, options, generators)
    yield Stage("final", session.decode_image(unpack_blocks(details, rows, columns)), time.perf_counter() - start)


def refine_sketch(
    session: Session, past: np.ndarray, options: DecodingOptions, generators: list[np.random.Generator]
) -> np.ndarray:
    """Fill the sketch in `coarse_steps` parallel passes: int64 [batch, coarse_tokens]."""
    batch, tokens = len(generators), session.coarse_grid[0] * session.coarse_grid[1]
    unknown = session.visual_vocabulary
    ids = np.full((batch, tokens), unknown, dtype=np.int64)
    for step in range(options.coarse_steps):
        temperature = options.temperature * (1 - step / options.coarse_steps)
        drawn, confidence = sample(session.coarse(past, ids), temperature, generators, options.top_k)
        missing = ids == unknown
        if step == options.coarse_steps - 1:
            return np.where(missing, drawn, ids)
        priority = options.confidence_weight * confidence + gumbel_noise(generators, (tokens,))
        priority = np.where(missing, priority, np.inf)
        known = known_after_step(step, options.coarse_steps, tokens)
        threshold = np.partition(priority, tokens - known, axis=-1)[:, tokens - known, None]
        ids = np.where(missing & (priority >= threshold), drawn, ids)
    return ids


def draw_details(
    session: Session,
    past: np.ndarray,
    sketch: np.ndarray,
    options: DecodingOptions,
    generators: list[np.random.Generator],
) -> np.ndarray:
    """All fine tokens in one pass from the sketch: int64 [batch, coarse_tokens, 4]."""
    blank = np.full((*sketch.shape, 4), session.visual_vocabulary, dtype=np.int64)
    ids, _ = sample(session.fine(past, sketch, blank), options.fine_temperature, generators, options.top_k)
    return ids


def pack_blocks(fine: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Fine grid to 2x2 blocks per coarse cell: [batch, 2 * rows, 2 * columns] -> [batch, rows * columns, 4]."""
    blocks = fine.reshape(-1, rows, 2, columns, 2).transpose(0, 1, 3, 2, 4)
    return blocks.reshape(len(fine), rows * columns, 4)


def unpack_blocks(blocks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The inverse of `pack_blocks`: [batch, rows * columns, 4] -> [batch, 2 * rows, 2 * columns]."""
    grid = blocks.reshape(-1, rows, columns, 2, 2).transpose(0, 1, 3, 2, 4)
    return grid.reshape(len(blocks), 2 * rows, 2 * columns)

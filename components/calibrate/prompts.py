"""Real prompts to calibrate and to measure with."""

from collections.abc import Iterator

import numpy as np

from model.data.shards import Shards, epoch_order


def prompt_batches(shards: Shards, count: int, batch_size: int, seed: int) -> list[np.ndarray]:
    """Up to `count` prompts drawn at random: batches of int64 [n, text_length], n <= batch_size."""
    rows = epoch_order(seed, 0, len(shards))[:count]
    return list(_batches(shards, rows, batch_size))


def _batches(shards: Shards, rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), batch_size):
        yield np.ascontiguousarray(shards.batch(rows[start : start + batch_size]).text_ids)

"""Copies of a decoder draw at the same time, and together what one draws."""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from benchmarks.decoders import Decoder
from benchmarks.side_by_side import Copies, SideBySide

IMAGE_S = 0.1


def opened() -> dict[str, Decoder]:
    """One whose images take their time, and tell their seed and the process that drew them."""

    def draw(text_ids: np.ndarray, seeds: list[int]) -> np.ndarray:
        time.sleep(IMAGE_S * len(text_ids))
        return np.array([[*prompt, seed, os.getpid()] for prompt, seed in zip(text_ids, seeds, strict=True)])

    return {"slow": Decoder("slow", 7, draw)}


@pytest.fixture(scope="module")
def both() -> Iterator[SideBySide]:
    with ExitStack() as stack:
        yield Copies(stack, opened, 2).decoder(opened()["slow"])


@pytest.mark.parametrize("images", [1, 4, 5])
def test_each_copy_draws_a_share_and_the_images_come_in_order(both: SideBySide, images: int) -> None:
    drawn = both.draw(np.arange(images)[:, None] + 10, list(range(images)))
    assert drawn[:, :2].tolist() == [[number + 10, number] for number in range(images)]
    processes = set(drawn[:, 2].tolist())
    assert len(processes) == min(images, 2) and os.getpid() not in processes
    assert (both.name, both.parameters) == ("slow", 7)


def test_a_batch_takes_as_long_as_the_shares_of_it_that_are_drawn_at_the_same_time(both: SideBySide) -> None:
    before = time.perf_counter()
    times = both.batch_ms(np.zeros((4, 1), dtype=np.int64), 3)
    assert len(times) == 3
    assert min(times) >= 2000 * IMAGE_S and np.median(times) < 3500 * IMAGE_S
    assert time.perf_counter() - before < 14 * IMAGE_S  # one of them alone would take 16, with the call before them


def test_one_image_is_drawn_by_one_copy_as_it_would_be_alone(both: SideBySide) -> None:
    assert 1000 * IMAGE_S <= np.median(both.batch_ms(np.zeros((1, 1), dtype=np.int64), 3)) < 1900 * IMAGE_S

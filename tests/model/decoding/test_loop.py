"""The decode loop, on a real (tiny, random) generator."""

import numpy as np
import pytest
import torch

from model.decoding.loop import DecodingOptions, generate, pack_blocks, unpack_blocks
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.session import TorchSession


class LevelsAsColours(torch.nn.Module):
    """A stand-in image decoder that paints a code's value: the loop under test ends at codes."""

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grey = codes[:, None].float() / 119.5 - 1
        return grey.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


@pytest.fixture(scope="module")
def session() -> TorchSession:
    torch.manual_seed(0)
    config = GeneratorConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1
    )
    return TorchSession(Generator(config), LevelsAsColours())


def prompts(count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 512, size=(count, 16))


def final(session: TorchSession, text_ids: np.ndarray, options: DecodingOptions, seeds: list[int]) -> np.ndarray:
    return list(generate(session, text_ids, options, seeds))[-1].pixels


@pytest.mark.parametrize("steps", [1, 3, 24])
def test_stages_arrive_in_order_with_their_sizes(session, steps):
    stages = list(generate(session, prompts(2), DecodingOptions(coarse_steps=steps), [1, 2]))
    assert [stage.name for stage in stages] == ["coarse", "final"]
    assert [stage.pixels.shape for stage in stages] == [(2, 32, 32, 3), (2, 64, 64, 3)]
    assert all(stage.pixels.dtype == np.uint8 for stage in stages)
    assert 0 < stages[0].seconds <= stages[1].seconds


def test_a_seed_reproduces_and_another_differs(session):
    text, options = prompts(1), DecodingOptions(coarse_steps=2, temperature=1.0)
    assert (final(session, text, options, [4]) == final(session, text, options, [4])).all()
    assert (final(session, text, options, [4]) != final(session, text, options, [5])).any()


def test_an_image_does_not_depend_on_its_batch(session):
    text, options = prompts(3), DecodingOptions(coarse_steps=3, temperature=1.0)
    together = final(session, text, options, [1, 2, 3])
    alone = final(session, text[1:2], options, [2])
    # Matrix products of other batch sizes may round differently and flip a near-tie: almost all pixels agree.
    assert (together[1] == alone[0]).mean() > 0.98


def test_blocks_and_grid_are_inverse():
    grid = np.arange(2 * 16 * 16).reshape(2, 16, 16)
    blocks = pack_blocks(grid, 8, 8)
    assert blocks.shape == (2, 64, 4)
    assert blocks[0, 9].tolist() == [grid[0, 2, 2], grid[0, 2, 3], grid[0, 3, 2], grid[0, 3, 3]]
    assert (unpack_blocks(blocks, 8, 8) == grid).all()

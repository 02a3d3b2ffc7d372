"""The decode loop, on a real (tiny, random) generator."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model.decoding.errors import OptionsError
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


@pytest.fixture(scope="module")
def three_grids() -> TorchSession:
    torch.manual_seed(0)
    return TorchSession(
        Generator(
            GeneratorConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                coarse_grid=(2, 4),
                detail_stages=2,
            )
        ),
        LevelsAsColours(),
    )


def test_every_stage_of_details_is_shown_and_starts_from_the_one_before(three_grids):
    options = DecodingOptions(fine_temperature=1.0)
    stages = list(generate(three_grids, prompts(2), options, [1, 2]))
    assert [stage.name for stage in stages] == ["coarse", "fine", "final"]
    assert [stage.pixels.shape[1:3] for stage in stages] == [(8, 16), (16, 32), (32, 64)]
    for last, name in enumerate(("coarse", "fine", "final")):
        fewer = list(generate(three_grids, prompts(2), replace(options, detail_stages=last), [1, 2]))
        assert len(fewer) == last + 1 and stages[last].name == name
        assert (fewer[-1].pixels == stages[last].pixels).all()


@pytest.mark.parametrize("stages", [-1, 3])
def test_stages_that_a_model_does_not_have_are_named(three_grids, stages):
    with pytest.raises(OptionsError, match=f"detail_stages is {stages}, but this model has 2: ask for 0 to 2"):
        final(three_grids, prompts(1), DecodingOptions(detail_stages=stages), [1])


def test_a_sketch_of_no_pass_is_refused(session):
    with pytest.raises(OptionsError, match="coarse_steps is 0"):
        final(session, prompts(1), DecodingOptions(coarse_steps=0), [1])


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


def test_the_plan_alone_tells_seeds_apart(session):
    """Without a temperature nothing but the plan is drawn."""
    text = prompts(1)
    varied = DecodingOptions(temperature=0, plan_temperature=1.0)
    assert (final(session, text, varied, [4]) != final(session, text, varied, [5])).any()
    fixed = DecodingOptions(temperature=0, plan_temperature=0)
    assert (final(session, text, fixed, [4]) == final(session, text, fixed, [5])).all()


def test_guidance_needs_a_prompt_that_says_nothing_and_moves_the_image(session):
    text, nothing = prompts(2), np.full(16, 7)
    with pytest.raises(OptionsError, match=r"guidance 3\.0 needs"):
        final(session, text, DecodingOptions(guidance=3.0), [1, 2])
    options = DecodingOptions(temperature=0)
    plain = final(session, text, options, [1, 2])
    (*_, guided) = generate(session, text, replace(options, guidance=3.0), [1, 2], nothing)
    assert (guided.pixels != plain).any()


class Counting:
    """A session that counts its passes over the sketch and the details and remembers what it was asked."""

    def __init__(self, session: TorchSession):
        self.asked: list[np.ndarray] = []
        self.details: list[np.ndarray] = []
        self._session = session

    def __getattr__(self, name: str):
        return getattr(self._session, name)

    def coarse(self, past, coarse_ids, plan_ids):
        self.asked.append(coarse_ids)
        return self._session.coarse(past, coarse_ids, plan_ids)

    def fine(self, past, coarse_ids, fine_ids, plan_ids, stage=1):
        self.details.append(fine_ids)
        return self._session.fine(past, coarse_ids, fine_ids, plan_ids, stage)


def test_what_was_drawn_against_the_odds_is_drawn_again_once(session):
    counting = Counting(session)
    options = DecodingOptions(temperature=1.0, redraw_below=0.005)
    redrawn = final(counting, prompts(1), options, [3])
    assert len(counting.asked) == 2
    again = counting.asked[1] == session.visual_vocabulary
    assert 0 < again.sum() < again.size  # an untrained model gives each of 240 codes about 0.4%
    assert (redrawn != final(session, prompts(1), replace(options, redraw_below=0), [3])).any()
    sure = Counting(session)
    final(sure, prompts(1), replace(options, redraw_below=1e-9), [3])
    assert len(sure.asked) == 1


def test_details_that_were_drawn_against_the_odds_are_drawn_again_once_at_every_stage(three_grids):
    counting, options = Counting(three_grids), DecodingOptions(fine_temperature=1.0, fine_redraw_below=0.002)
    redrawn = final(counting, prompts(1), options, [3])
    assert [blocks.shape[1] for blocks in counting.details] == [8, 8, 32, 32]
    for again in counting.details[1::2]:
        hidden = again == three_grids.visual_vocabulary
        assert 0 < hidden.sum() < hidden.size and (hidden.any(-1) == hidden.all(-1)).all()  # whole blocks, and not all
    assert (redrawn != final(three_grids, prompts(1), replace(options, fine_redraw_below=0), [3])).any()
    sure = Counting(three_grids)
    final(sure, prompts(1), replace(options, fine_redraw_below=1e-9), [3])
    assert len(sure.details) == 2


def test_a_redraw_of_one_image_leaves_the_others_alone(session):
    text = prompts(3)
    options = DecodingOptions(temperature=1.0, fine_temperature=1.0, redraw_below=0.004)
    together = final(session, text, options, [1, 2, 3])
    alone = final(session, text[1:2], options, [2])
    assert (together[1] == alone[0]).mean() > 0.98


def test_without_previews_only_the_final_stage_comes(session):
    stages = list(generate(session, prompts(1), DecodingOptions(previews=False), [1]))
    assert [stage.name for stage in stages] == ["final"]

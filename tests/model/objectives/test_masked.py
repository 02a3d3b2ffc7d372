"""Masking, corruption and the losses."""

import math

import pytest
import torch

from model.data.grids import Grids
from model.objectives.heldout import heldout_losses
from model.objectives.lesson import draw_lesson
from model.objectives.losses import lesson_losses
from model.objectives.masked import corrupt, draw_mask, drop_prompts
from model.objectives.settings import MaskingSettings
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

CONFIG = GeneratorConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_grids(batch: int) -> Grids:
    return Grids(
        torch.randint(512, (batch, 16), generator=rng(1)),
        (torch.randint(240, (batch, 64), generator=rng(2)),),
        (torch.randint(240, (batch, 64, 4), generator=rng(3)),),
    )


def test_masks_hide_whole_grids_as_often_as_asked():
    masks = draw_mask(4_000, 64, 0.4, rng())
    # cos(pi/2 u) with u uniform has the mean 2/pi; a cosine row is whole only with negligible probability.
    assert masks.float().mean().item() == pytest.approx(0.4 + 0.6 * 2 / math.pi, abs=0.02)
    assert masks.all(1).float().mean().item() == pytest.approx(0.4, abs=0.06)


def test_corruption_replaces_the_share_it_names():
    ids = torch.full((200, 64), 300)
    assert (corrupt(ids, 0.05, 240, rng()) != 300).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert torch.equal(corrupt(ids, 0.0, 240, rng()), ids)


def test_prompts_are_left_out_in_the_share_that_is_asked_for():
    grids, nothing = random_grids(2000), [7] * 16
    assert drop_prompts(grids, 0.0, nothing, rng()) is grids
    dropped = drop_prompts(grids, 0.1, nothing, rng())
    gone = (dropped.text_ids == 7).all(1)
    assert gone.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(dropped.text_ids[~gone], grids.text_ids[~gone])
    assert torch.equal(dropped.coarse, grids.coarse)


def test_an_untrained_model_is_about_as_unsure_as_chance():
    torch.manual_seed(0)
    model, grids = Generator(CONFIG), random_grids(8)
    losses = lesson_losses(model, draw_lesson("parallel", grids, CONFIG, MaskingSettings(), rng(), fine_rows=8))
    next_token = lesson_losses(model, draw_lesson("next_token", grids, CONFIG, MaskingSettings(), rng(), fine_rows=0))
    assert next_token.keys() == {"coarse_loss"}
    losses["next_token_loss"] = next_token["coarse_loss"]
    assert losses.keys() == {"coarse_loss", "plan_loss", "fine_loss", "next_token_loss"}
    for loss in losses.values():
        assert loss.item() == pytest.approx(math.log(240), rel=0.15)


def test_both_losses_fall_when_a_batch_is_learned():
    torch.manual_seed(0)
    model, grids = Generator(CONFIG).train(), random_grids(4)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    first = last = 0.0
    for step in range(60):
        lesson = draw_lesson("parallel", grids, CONFIG, MaskingSettings(), rng(step), fine_rows=4)
        parallel = lesson_losses(model, lesson)
        loss = parallel["coarse_loss"] + parallel["plan_loss"] + parallel["fine_loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        first, last = (loss.item() if step == 0 else first), loss.item()
    assert last < 0.6 * first


def test_heldout_loss_is_fixed_and_tells_models_apart():
    torch.manual_seed(0)
    model, grids = Generator(CONFIG).eval(), random_grids(70)
    losses = heldout_losses(model, grids)
    assert len(losses) == 70
    assert losses == heldout_losses(model, grids)
    with torch.no_grad():
        model.coarse_head.bias[grids.coarse.flatten().bincount(minlength=240).argmax()] -= 5
    assert sum(heldout_losses(model, grids)) > sum(losses)

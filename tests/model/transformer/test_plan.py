"""The plan: what an image's code is, and how one is drawn."""

import numpy as np
import pytest
import torch

from model.decoding.samplers import gumbel_noise, streams
from model.transformer.config import GeneratorConfig
from model.transformer.plan import Plan
from model.transformer.plan_prior import PlanPrior

CONFIG = GeneratorConfig(
    hidden_size=32,
    intermediate_size=32,
    num_attention_heads=2,
    num_key_value_heads=2,
    visual_levels=(4, 3),
    coarse_grid=(2, 4),
    plan_tokens=3,
)


@pytest.fixture
def prior() -> PlanPrior:
    torch.manual_seed(0)
    prior = PlanPrior(32, 3, (4, 3))
    with torch.no_grad():
        prior.heads.mul_(8)  # unlike an untrained one's, its codes depend on each other
    return prior


def test_a_drawn_plans_logits_are_those_of_its_codes(prior):
    last, noise = torch.randn(5, 32), torch.randn(5, *prior.noise_shape)
    codes, logits = prior.draw(last, noise)
    torch.testing.assert_close(logits, prior.logits(last, codes))


def test_noise_draws_plans_as_often_as_the_prior_says(prior):
    """All 12^2 beginnings of a plan, against the chain rule's probabilities at a temperature."""
    temperature, draws = 0.7, 20_000
    last = torch.randn(1, 32)
    noise = torch.from_numpy(gumbel_noise(streams(list(range(draws))), prior.noise_shape)) * temperature
    with torch.no_grad():
        codes, _ = prior.draw(last.expand(draws, -1), noise)
        pairs = torch.cartesian_prod(torch.arange(12), torch.arange(12))
        given = torch.cat([pairs, torch.zeros(144, 1, dtype=torch.long)], 1)
        each = torch.log_softmax(prior.logits(last.expand(144, -1), given) / temperature, -1)
    expected = each[torch.arange(144), 0, pairs[:, 0]].exp() * each[torch.arange(144), 1, pairs[:, 1]].exp()
    found = np.bincount((codes[:, 0] * 12 + codes[:, 1]).numpy(), minlength=144) / draws
    assert expected.sum().item() == pytest.approx(1, abs=1e-4)
    assert np.abs(found - expected.numpy()).max() < 0.015
    assert np.abs(found - expected.numpy()).sum() < 0.1
    assert codes[:, 0].unique().numel() > 3


def test_codes_come_later_only_from_what_came_before(prior):
    last, codes = torch.randn(1, 32), torch.tensor([[1, 5, 7]])
    before, after = prior.logits(last, codes), prior.logits(last, torch.tensor([[1, 6, 7]]))
    assert torch.equal(before[:, :2], after[:, :2])
    assert not torch.equal(before[:, 2], after[:, 2])


def test_certain_noise_leaves_no_choice(prior):
    codes = torch.randint(12, (64, 3), generator=torch.Generator().manual_seed(1))
    drawn, logits = prior.draw(torch.randn(64, 32), prior.certain(codes))
    assert torch.equal(drawn, codes)
    assert logits.abs().max() < 1e3  # what is told of the codes is the model's own


def test_a_plan_is_of_the_sketch_and_the_details():
    torch.manual_seed(0)
    plan = Plan(CONFIG).eval()
    random = torch.Generator().manual_seed(2)
    coarse, fine = (torch.randint(12, shape, generator=random) for shape in ((200, 8), (200, 8, 4)))
    codes = plan.codes(plan.encode(coarse, [fine]))
    assert codes.shape == (200, 3)
    assert torch.equal(plan.codes(plan.values(codes)), codes)
    other_sketch, other_details = (coarse + 1) % 12, (fine + 1) % 12
    assert (plan.codes(plan.encode(other_sketch, [fine])) != codes).any()
    assert (plan.codes(plan.encode(coarse, [other_details])) != codes).any()
    values = plan.values(codes)
    assert plan.sketch(values).shape == plan.details(values).shape == (200, 8, 32)

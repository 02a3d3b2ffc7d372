"""The optimizer pair and its schedule."""

import pytest
import torch

from components.train.optimizer import learning_rate_at, make_optimizer, set_learning_rate, split_parameters
from components.train.settings import TrainingSettings
from model.data.grids import Grids
from model.objectives.lesson import draw_lesson
from model.objectives.losses import lesson_losses
from model.objectives.settings import MaskingSettings
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

CONFIG = GeneratorConfig(
    hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2
)


def test_schedule_warms_up_stays_and_decays():
    settings = TrainingSettings(
        steps=1000, warmup_steps=10, learning_rate=1.0, constant_share=0.5, final_learning_rate_ratio=0.02
    )
    rates = [learning_rate_at(step, settings) for step in range(1000)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:501] == pytest.approx([1.0] * 492)
    assert rates[750] == pytest.approx(0.51)
    assert rates[500:] == sorted(rates[500:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-4)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_every_parameter_is_in_one_group_with_its_own_decay(kind):
    settings = TrainingSettings(optimizer=kind, weight_decay=0.3, other_weight_decay=0.2)
    model = Generator(CONFIG)
    optimizer = make_optimizer(model, settings)
    decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(decays) == len(list(model.parameters()))
    matrices, _, others = split_parameters(model)
    assert {decays[id(parameter)] for parameter in matrices} == {0.3}
    assert {decays[id(parameter)] for parameter in others} == {0.2}


def test_only_block_matrices_go_to_muon():
    model = Generator(CONFIG)
    matrices, plan_encoder, others = split_parameters(model)
    assert model.plan is not None
    assert len(matrices) == 4 * CONFIG.num_hidden_layers
    assert {id(parameter) for parameter in plan_encoder} == {id(p) for p in model.plan.encoder.parameters()}
    assert len(matrices) + len(plan_encoder) + len(others) == len(list(model.parameters()))
    assert any(parameter is model.text_embedding.weight for parameter in others)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_at_rate_zero_nothing_moves_the_plans_encoder(kind):
    """Neither momentum nor weight decay: plans that drift are other plans than those that the prior has learned."""
    torch.manual_seed(0)
    model = Generator(CONFIG).train()
    assert model.plan is not None
    optimizer, grids = make_optimizer(model, TrainingSettings(optimizer=kind)), random_grids(4)

    def step(plan_encoder: float) -> list[torch.Tensor]:
        set_learning_rate(optimizer, 1e-2, plan_encoder)
        draws = torch.Generator().manual_seed(0)
        losses = lesson_losses(model, draw_lesson("parallel", grids, CONFIG, MaskingSettings(), draws, fine_rows=2))
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.plan.encoder.parameters()]

    first, moved = step(1e-2), step(1e-2)
    assert not all(torch.equal(one, other) for one, other in zip(first, moved, strict=True))
    statistics = model.plan.encoder["latents"][3].running_mean.clone()
    codes = model.plan.codes(model.plan.eval().encode(grids.coarse, grids.details))
    model.train()
    model.plan.freeze()
    kept = step(0.0)
    assert all(torch.equal(one, other) for one, other in zip(moved, kept, strict=True))
    assert torch.equal(model.plan.encoder["latents"][3].running_mean, statistics)
    assert torch.equal(model.plan.codes(model.plan.encode(grids.coarse, grids.details)), codes)


def random_grids(batch: int) -> Grids:
    random = torch.Generator().manual_seed(1)
    draws = ((512, (batch, 16)), (240, (batch, 64)), (240, (batch, 64, 4)))
    text, sketch, details = (torch.randint(codes, shape, generator=random) for codes, shape in draws)
    return Grids(text, (sketch,), (details,))


def test_each_optimizer_has_the_schedule_that_it_is_known_for():
    muon, adamw = TrainingSettings(), TrainingSettings(optimizer="adamw")
    assert (muon.learning_rate, muon.constant_share) == (5e-3, 0.5)
    assert (adamw.learning_rate, adamw.constant_share) == (1e-4, 0.0)
    given = TrainingSettings(optimizer="adamw", learning_rate=3e-4, constant_share=0.2)
    assert (given.learning_rate, given.constant_share) == (3e-4, 0.2)
    assert TrainingSettings.model_validate(adamw.model_dump()) == adamw

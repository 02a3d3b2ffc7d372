"""The story's loss: every part of the model learns, and open gates cost nothing before they are of use."""

import pytest
import torch

from model.objectives.story import Pressure, StoryLossSettings, story_loss
from tests.model.transformer.test_story import generator, story

ASKED = torch.tensor([[0, 3, 4], [2, 1, 0]])
SETTINGS = StoryLossSettings(pressure_steps=4)


@pytest.mark.parametrize("gated", [True, False])
def test_every_parameter_learns(gated):
    model, (captions, sketches, requests) = generator(gated=gated).train(), story()
    loss, parts = story_loss(model, captions, sketches, requests, ASKED, SETTINGS, pressure=1.0)
    loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []
    assert ("open" in parts) == gated and 0 <= parts["right"] <= 1


def test_open_gates_cost_what_the_pressure_says_beyond_the_target():
    model, (captions, sketches, requests) = generator(), story()

    def total(pressure: float) -> tuple[float, float, float]:
        loss, parts = story_loss(model, captions, sketches, requests, ASKED, SETTINGS, pressure)
        return loss.item(), parts["sketch"].item(), parts["open"].item()

    loss, sketch, opened = total(0.0)
    assert loss == pytest.approx(sketch) and opened > SETTINGS.open_target
    assert total(0.5)[0] == pytest.approx(sketch + 0.5 * (opened - SETTINGS.open_target), abs=1e-5)


def test_the_sketch_is_that_of_the_scene_asked_for():
    model, (captions, sketches, requests) = generator(), story()
    logits, _ = model.train_ask(model.context(captions, sketches), requests)
    _, parts = story_loss(model, captions, sketches, requests, ASKED, SETTINGS, 0.0)
    target = torch.stack([sketches[s][ASKED[s]] for s in range(2)])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.flatten())
    torch.testing.assert_close(parts["sketch"], expected)


def test_pressure_begins_when_the_model_has_learned_to_look_back_and_stays():
    pressure = Pressure(SETTINGS)
    for loss in (3.0, 2.0, 1.0):
        pressure.update(loss)
    assert pressure.value == 0
    for _ in range(100):
        pressure.update(0.1)
        if pressure.value:
            break
    assert pressure.value == 0.25
    for loss in (5.0, 5.0, 5.0, 5.0):
        pressure.update(loss)
    assert pressure.value == 1

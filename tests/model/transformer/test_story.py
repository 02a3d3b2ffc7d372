"""The story generator: what is cached, skipped or gathered changes no number."""

import pytest
import torch
from pydantic import ValidationError

from model.transformer.story import StoryGenerator
from model.transformer.story_config import StoryConfig

SCENES, CELLS, TEXT = 5, 16, 6
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "text_vocabulary": 20,
    "text_length": TEXT,
    "visual_levels": (4, 3),
    "coarse_grid": (4, 4),
}


def generator(**changes) -> StoryGenerator:
    torch.manual_seed(0)
    model = StoryGenerator(StoryConfig.model_validate(SHAPE | changes)).eval()
    for gate in model.gates:  # half of the blocks open, not all
        gate.bias.data.fill_(0.0)
        gate.match.data.normal_()
    return model


def story(stories: int = 2, requests: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    captions = torch.randint(20, (stories, SCENES, TEXT), generator=random)
    sketches = torch.randint(12, (stories, SCENES, CELLS), generator=random)
    return captions, sketches, torch.randint(20, (stories, requests, TEXT), generator=random)


@torch.no_grad()
def test_gathering_answers_as_training_does():
    model, (captions, sketches, requests) = generator(), story()
    context = model.context(captions, sketches)
    asked, gates = model.ask(context, requests)
    trained, alphas = model.train_ask(context, requests)
    assert 0.1 < torch.stack(gates).mean() < 0.9
    assert all(torch.equal(gate > 0.5, alpha > 0.5) for gate, alpha in zip(gates, alphas, strict=True))
    torch.testing.assert_close(asked, trained, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_open_gates_are_the_twin_without_a_gate():
    model, twin, (captions, sketches, requests) = generator(), generator(gated=False), story()
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("gates.")})
    context = model.context(captions, sketches)
    _, gates = model.ask(context, requests)
    opened, _ = model.ask(context, requests, [torch.ones_like(gate) for gate in gates])
    expected, used = twin.ask(twin.context(captions, sketches), requests)
    assert torch.stack(used).min() == 1
    torch.testing.assert_close(opened, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(twin.train_ask(twin.context(captions, sketches), requests)[0], expected)
    one = twin.ask(twin.context(captions, sketches), requests[:, :1])[0]
    torch.testing.assert_close(one, expected[:, :1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_requests_and_stories_answer_alike_alone_and_together():
    model, (captions, sketches, requests) = generator(), story()
    together, _ = model.ask(model.context(captions, sketches), requests)
    for number in range(2):
        alone = model.context(captions[number : number + 1], sketches[number : number + 1])
        for request in range(3):
            answer, _ = model.ask(alone, requests[number : number + 1, request : request + 1])
            torch.testing.assert_close(answer[0, 0], together[number, request], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_scene_is_encoded_by_itself_and_has_no_place():
    model, (captions, sketches, requests) = generator(), story(stories=1)
    context = model.context(captions, sketches)
    turned = torch.arange(SCENES - 1, -1, -1)
    backwards = model.context(captions[:, turned], sketches[:, turned])
    block = TEXT + CELLS
    for layer, other in zip(context, backwards, strict=True):
        torch.testing.assert_close(layer.keys[:, :, :block], other.keys[:, :, -block:])
    torch.testing.assert_close(model.ask(context, requests)[0], model.ask(backwards, requests)[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_closed_scene_is_not_seen_and_an_open_one_is():
    model, (captions, sketches, requests) = generator(), story(stories=1, requests=1)
    gates = [torch.zeros(1, 2, 2, 2 * SCENES) for _ in range(2)]
    for gate in gates:
        gate[..., 2:4] = 1  # the second scene, its caption and its image

    def answer(scene: int) -> torch.Tensor:
        other = sketches.clone()
        other[:, scene] = (other[:, scene] + 1) % 12
        return model.ask(model.context(captions, other), requests, gates)[0]

    before = model.ask(model.context(captions, sketches), requests, gates)[0]
    assert torch.equal(answer(0), before) and torch.equal(answer(4), before)
    assert not torch.allclose(answer(1), before)


@torch.no_grad()
def test_a_higher_threshold_opens_less():
    model, (captions, sketches, requests) = generator(), story()
    context = model.context(captions, sketches)
    shares = [torch.stack(model.gates_above(context, requests, logit)).mean() for logit in (-50.0, 0.0, 50.0)]
    assert shares[0] == 1 > shares[1] > shares[2]
    assert shares[1] == torch.stack(model.ask(context, requests)[1]).mean()


def test_a_shape_that_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="query_blocks"):
        StoryConfig.model_validate(SHAPE | {"query_blocks": 3})
    with pytest.raises(ValidationError, match="multiple"):
        StoryConfig.model_validate(SHAPE | {"num_attention_heads": 3})

"""What a story generator learns from: the asked scene's sketch, and where it should have looked."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from common.settings import Section
from model.transformer.story import Looked, StoryGenerator

_BLOCKS_OF_SCENE = 2


class StoryLossSettings(Section):
    """Weights of the losses beside the sketch's."""

    attention_weight: float = Field(default=0.2, ge=0, description="attention on the scene that is asked for")
    gate_weight: float = Field(default=0.5, ge=0, description="open for that scene, closed for the others")
    closed_weight: float = Field(
        default=0.5, gt=0, description="the others' part of it: below 1, so that a gate that cannot tell stays open"
    )


def story_loss(
    model: StoryGenerator, captions: Tensor, sketches: Tensor, requests: Tensor, asked: Tensor, settings: StoryLossSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts in nats.

    `captions` and `sketches` int64 [s, n, …] are the stories' scenes, `requests` int64 [s, r, t] ask for those at `asked`
    int64 [s, r]. The scene that a request means is known in training: the attention (before the gate) and the gate are
    told of it. The twin without a gate learns from the same attention loss.
    """
    context = model.context(captions, sketches)
    logits, looked = model.train_ask(context, requests)
    target = sketches.gather(1, asked[..., None].expand(-1, -1, sketches.shape[-1]))
    sketch = F.cross_entropy(logits.float().flatten(0, 2), target.flatten())
    blocks = model.config.query_blocks
    meant = F.one_hot(asked, captions.shape[1]).repeat_interleave(blocks, 1).repeat_interleave(_BLOCKS_OF_SCENE, 2)
    meant = meant[:, None].to(torch.bool)  # [s, 1, r * query_blocks, blocks of scenes]
    attention = torch.stack([_attention_loss(each, meant) for each in looked]).mean()
    parts = {"sketch": sketch, "attention": attention}
    total = sketch + settings.attention_weight * attention
    if model.config.gated:
        gate = torch.stack([_gate_loss(each, meant, settings.closed_weight) for each in looked]).mean()
        parts["gate"], total = gate, total + settings.gate_weight * gate
        parts["open"] = torch.stack([(each.logits > 0).float().mean() for each in looked if each.logits is not None]).mean()
    parts["right"] = (logits.argmax(-1) == target).float().mean()
    return total, parts


def _attention_loss(looked: Looked, meant: Tensor) -> Tensor:
    """-log of the earlier attention's share that goes to the scene that is asked for."""
    return -(looked.mass * meant).sum(-1).clamp_min(1e-6).log().mean()


def _gate_loss(looked: Looked, meant: Tensor, closed_weight: float) -> Tensor:
    """Cross-entropy of open and closed, each side averaged over its own blocks."""
    assert looked.logits is not None
    logits = looked.logits.float()
    wide = meant.expand_as(logits)
    return F.softplus(-logits[wide]).mean() + closed_weight * F.softplus(logits[~wide]).mean()

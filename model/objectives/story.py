"""What a story generator learns from: the sketch of the scene that is asked for."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from common.settings import Section
from model.transformer.gate import open_blocks
from model.transformer.story import StoryGenerator


class StoryLossSettings(Section):
    """What open gates cost beside the sketch's loss."""

    open_weight: float = Field(default=1.0, ge=0, description="the gates' open share beyond `open_target`")
    open_target: float = Field(default=0.02, ge=0, lt=1, description="share of the earlier blocks that costs nothing")
    found_below: float = Field(
        default=0.3, gt=0, description="sketch loss (nats) below which the model has learned to look back"
    )
    pressure_steps: int = Field(default=200, ge=1, description="steps over which open gates then begin to cost")


@dataclass
class Pressure:
    """How much open gates cost, 0 to 1: nothing before the model has learned to look back.

    A gate that is charged from the start closes before it has been of any use.
    """

    settings: StoryLossSettings
    smoothed: float | None = None
    steps: int = 0
    """Since the model has learned to look back."""

    @property
    def value(self) -> float:
        return min(1.0, self.steps / self.settings.pressure_steps)

    def update(self, sketch_loss: float) -> None:
        """Take a step's sketch loss."""
        self.smoothed = sketch_loss if self.smoothed is None else 0.95 * self.smoothed + 0.05 * sketch_loss
        if self.steps or self.smoothed < self.settings.found_below:
            self.steps += 1


def story_loss(
    model: StoryGenerator,
    captions: Tensor,
    sketches: Tensor,
    requests: Tensor,
    asked: Tensor,
    settings: StoryLossSettings,
    pressure: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and its parts.

    `captions` and `sketches` int64 [s, n, …] are the stories' scenes, `requests` int64 [s, r, t] ask for those at `asked`
    int64 [s, r]. Parts: `sketch` in nats, `right` the share of the cells, and with a gate the `open` share of the earlier
    blocks. Nothing tells the gate which block is meant: it learns from the sketch, through the
    straight-through estimate, and from `pressure` (0 to 1) times what open blocks cost.
    """
    context = model.context(captions, sketches)
    logits, alphas = model.train_ask(context, requests)
    target = sketches.gather(1, asked[..., None].expand(-1, -1, sketches.shape[-1]))
    loss = F.cross_entropy(logits.float().flatten(0, 2), target.flatten())
    parts = {"sketch": loss, "right": (logits.argmax(-1) == target).float().mean()}
    if alphas:
        parts["open"] = torch.stack([open_blocks(alpha) for alpha in alphas]).mean()
        loss = loss + settings.open_weight * pressure * F.relu(parts["open"] - settings.open_target)
    return loss, parts

"""The adapt step: a checkpoint that predicts one token after another learns to predict them all at once.

Emu3.5 calls this discrete diffusion adaptation (DiDA): the weights stay one decoder's, which now sees a whole grid of
masked tokens in both directions and fills them in parallel.
"""

from dataclasses import dataclass
from pathlib import Path

from common.errors import DataError
from common.files import read_json
from components.adapt.settings import AdaptationSettings
from components.train.launcher import Launcher
from components.train.train import optimize, verified_inputs
from model.transformer.config import GeneratorConfig


@dataclass(frozen=True)
class AdaptationResult:
    """What the step reports."""

    steps: int
    cost_share: float
    """Steps over those of the training that it adapts."""
    seconds: float
    heldout_loss: float
    """Of the parallel prediction, in nats a token, after the adaptation."""
    heldout_loss_before: float
    """The same of the checkpoint as it came."""


def adapt(
    settings: AdaptationSettings,
    trained: Path,
    shards: Path,
    tokenizers: Path,
    work: Path,
    checkpoint: Path,
    launcher: Launcher | None = None,
) -> AdaptationResult:
    """Adapt the next-token checkpoint `trained` on `shards` and write `checkpoint/`.

    `work` survives an interruption and `launcher` starts the ranks, as in training. Raises `DataError` where `trained` predicts in parallel already,
    and what training raises.
    """
    before = read_json(trained / "training.json")
    if before["objective"] != "next_token":
        raise DataError(
            "this checkpoint predicts in parallel already", where=str(trained), fix="set training.objective=next_token"
        )
    shape = GeneratorConfig.parse(read_json(trained / "config.json"), where=str(trained / "config.json"))
    inputs = verified_inputs(shards, tokenizers)
    training = optimize("adaptation", settings, "parallel", shape, inputs, trained, work, checkpoint, launcher)
    return AdaptationResult(
        steps=settings.steps,
        cost_share=settings.steps / before["steps"],
        seconds=training["seconds"],
        heldout_loss=training["heldout_loss"],
        heldout_loss_before=_parallel_loss(trained, shards, shape),
    )


def _parallel_loss(checkpoint: Path, shards: Path, shape: GeneratorConfig) -> float:
    from model.checkpoint import load_checkpoint
    from model.data.grids import read_grids
    from model.data.shards import Shards
    from model.objectives.heldout import heldout_losses

    heldout = Shards(shards, "heldout")
    losses = heldout_losses(load_checkpoint(checkpoint), read_grids(heldout, list(range(len(heldout))), shape))
    return sum(losses) / len(losses)

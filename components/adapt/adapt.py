"""The adapt step: a checkpoint that predicts one token after another learns to predict them all at once.

Emu3.5 calls this discrete diffusion adaptation (DiDA): the weights stay one decoder's, which now sees a whole grid of
masked tokens in both directions and fills them in parallel.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from common.files import read_json_object
from components.adapt.settings import AdaptationSettings
from components.train.launcher import Launcher
from components.train.train import optimize, verified_inputs
from model.transformer.config import GeneratorConfig


@dataclass(frozen=True)
class AdaptationResult:
    """What the step reports."""

    steps: int
    cost_share: float | None
    """Images that its steps took over those of the training that it adapts, however large each one's batches; None where
    that training was an earlier version's, which did not write down its batches."""
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

    `work` survives an interruption and `launcher` starts the ranks, as in training. Raises `DataError` where `trained`
    predicts in parallel already or is no whole checkpoint, and what training raises.
    """
    before = read_json_object(trained / "training.json", fix="name the folder of a trained checkpoint")
    if before.get("objective") != "next_token":
        raise DataError(
            "this checkpoint predicts in parallel already", where=str(trained), fix="set training.objective=next_token"
        )
    config = trained / "config.json"
    shape = GeneratorConfig.parse(read_json_object(config), where=str(config))
    inputs = verified_inputs(shards, tokenizers)
    training = optimize("adaptation", settings, "parallel", shape, inputs, trained, work, checkpoint, launcher)
    return AdaptationResult(
        steps=training["steps"],
        cost_share=cost_share(training, before),
        seconds=training["seconds"],
        heldout_loss=training["heldout_loss"],
        heldout_loss_before=_parallel_loss(trained, shards, shape),
    )


def cost_share(adaptation: dict[str, Any], training: dict[str, Any]) -> float | None:
    """`AdaptationResult.cost_share`, from the `training.json` of both."""
    if "global_batch_size" not in training:
        return None
    taken, before = (each["steps"] * each["global_batch_size"] for each in (adaptation, training))
    return taken / before


def _parallel_loss(checkpoint: Path, shards: Path, shape: GeneratorConfig) -> float:
    from model.checkpoint import load_checkpoint
    from model.data.grids import read_grids
    from model.data.shards import Shards
    from model.objectives.heldout import heldout_losses

    heldout = Shards(shards, "heldout")
    losses = heldout_losses(load_checkpoint(checkpoint), read_grids(heldout, list(range(len(heldout))), shape))
    return sum(losses) / len(losses)

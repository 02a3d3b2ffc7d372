"""What a training leaves: its final weights, put together, and what is known about them."""

from pathlib import Path
from typing import Any

import torch.distributed as dist

from common.files import write_json
from components.train.job import Job
from components.train.meter import Meter
from components.train.optimizer import use_bf16
from model.checkpoint import load_tensors, save_tensors
from model.data.grids import read_grids
from model.data.shards import Shards
from model.objectives.heldout import heldout_losses, heldout_next_token_losses
from model.parallel.engine import Engine
from model.parallel.layout import ParallelLayout
from model.transformer.model import Generator


def leave_weights(work: Path, engine: Engine[Any]) -> None:
    """Write the final weights, each stage its own; returns once all have. All ranks call it."""
    if engine.place.data == 0 or engine.options.zero:
        weights = engine.weights()
        if engine.place.holds_whole:
            save_tensors(_stage_file(work, engine.place.stage), weights)
    dist.barrier()


def finish(job: Job, layout: ParallelLayout, meter: Meter, *, first_step: int, steps: int) -> None:
    """Put the stages' weights together, and score and describe them: `final.safetensors` and `training.json`."""
    files = [_stage_file(job.work, stage) for stage in range(layout.pipeline)]
    weights = {name: tensor for file in files for name, tensor in load_tensors(file).items()}
    generator = Generator(job.model)
    generator.load_state_dict(weights)
    heldout = Shards(job.shards, "heldout")
    score = heldout_next_token_losses if job.objective == "next_token" else heldout_losses
    losses = score(generator.eval(), read_grids(heldout, list(range(len(heldout))), job.model))
    save_tensors(job.work / "final.safetensors", weights)
    for file in files:
        file.unlink()
    write_json(
        job.work / "training.json",
        {
            "objective": job.objective,
            "steps": steps,
            "first_step": first_step,
            "global_batch_size": job.training.global_batch_size,
            "seconds": meter.seconds,
            "ranks": dist.get_world_size(),
            "layout": str(layout),
            "precision": "bf16" if use_bf16(job.training) else "fp32",
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "last": meter.last,
            "heldout_loss": sum(losses) / len(losses),
            "heldout_loss_per_sample": losses,
            "tokenizers_digest": job.tokenizers_digest,
            "unconditional_share": job.training.masking.unconditional_share,
        },
    )


def _stage_file(work: Path, stage: int) -> Path:
    return work / f"final-{stage}.safetensors"

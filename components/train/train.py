"""The training step: check the inputs, run the ranks, leave a checkpoint."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DigestMismatchError, UsageError
from common.files import read_json
from components.train.job import Job
from components.train.launcher import run_ranks
from components.train.settings import TrainingSettings
from model.transformer.config import GeneratorConfig, ModelSettings

if TYPE_CHECKING:
    from model.data.shards import Shards
    from model.tokenizers.bundle import TokenizerBundle


@dataclass(frozen=True)
class TrainingResult:
    """What the step reports."""

    parameters: int
    seconds: float
    coarse_loss: float
    heldout_loss: float


def train(
    settings: TrainingSettings,
    model: ModelSettings,
    shards: Path,
    tokenizers: Path,
    parent_checkpoint: Path | None,
    work: Path,
    checkpoint: Path,
) -> TrainingResult:
    """Train a generator on `shards` and write `checkpoint/`.

    `work` survives an interruption: a second call with the same settings and data goes on from the newest state
    in it. What `model` leaves open follows from the tokenizers and the shards. Raises `TrainingError` when a rank fails,
    `DigestMismatchError` when a shard is not the one that was written or the shards were cut with other tokenizers,
    `DataError` where a shard is empty.
    """
    import torch

    from model.checkpoint import load_tensors, save_checkpoint
    from model.data.shards import Shards, verify_shards
    from model.tokenizers.bundle import TokenizerBundle
    from model.transformer.model import Generator

    shards_digest = verify_shards(shards)
    bundle, cut = TokenizerBundle.load(tokenizers), Shards(shards, "train")
    if cut.tokenizers_digest != bundle.digest:
        raise DigestMismatchError(
            "the shards were cut with other tokenizers", where=str(shards), fix="run the tokenize step again"
        )
    if settings.global_batch_size % settings.processes:
        raise UsageError(
            f"training.global_batch_size {settings.global_batch_size} is not a multiple of training.processes {settings.processes}",
            fix="change one of them",
        )
    shape = generator_config(model, bundle, cut)
    job = Job(
        training=settings,
        model=shape,
        shards=shards.resolve(),
        shards_digest=shards_digest,
        tokenizers_digest=bundle.digest,
        unconditional_prompt=tuple(bundle.text.unconditional_prompt(cut.layout.text_length)),
        parent_checkpoint=parent_checkpoint.resolve() if parent_checkpoint else None,
        work=work.resolve(),
    )
    work.mkdir(parents=True, exist_ok=True)
    job.write(work / "job.json")
    run_ranks(
        "components.train.worker",
        [str(work / "job.json")],
        processes=settings.processes,
        threads=settings.threads_per_process,
    )
    training = read_json(work / "training.json")
    with torch.no_grad():
        generator = Generator(shape)
        generator.load_state_dict(load_tensors(work / "final.safetensors"))
    save_checkpoint(checkpoint, generator, tokenizers, training)
    shutil.copyfile(work / "curves.jsonl", checkpoint / "curves.jsonl")
    return TrainingResult(
        training["parameters"], training["seconds"], training["last"]["coarse_loss"], training["heldout_loss"]
    )


def generator_config(model: ModelSettings, bundle: "TokenizerBundle", shards: "Shards") -> GeneratorConfig:
    """The whole shape: what was chosen, with the vocabularies of the tokenizers and the sizes of the records."""
    return GeneratorConfig(
        **model.model_dump(),
        text_vocabulary=bundle.text.vocabulary,
        text_length=shards.layout.text_length,
        visual_levels=bundle.visual.config.levels,
        coarse_grid=shards.layout.coarse_grid,
    )

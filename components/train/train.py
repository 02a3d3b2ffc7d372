"""The training step: check the inputs, run the ranks, leave a checkpoint."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DigestMismatchError, UsageError
from common.files import read_json
from components.train.job import Job
from components.train.launcher import run_ranks
from components.train.settings import Objective, OptimizationSettings, TrainingSettings
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
    model: ModelSettings | GeneratorConfig,
    shards: Path,
    tokenizers: Path,
    parent_checkpoint: Path | None,
    work: Path,
    checkpoint: Path,
) -> TrainingResult:
    """Train a generator on `shards` and write `checkpoint/`.

    `work` survives an interruption: a second call with the same settings and data goes on from the newest state
    in it. What `model` leaves open follows from the tokenizers and the shards; a whole shape is taken as it is, and may
    have the image's own grid for its sketch. Raises `TrainingError` when a rank fails, `DigestMismatchError` when a shard
    is not the one that was written or the shards were cut with other tokenizers, `DataError` where a shard is empty.
    """
    from model.data.shards import Shards
    from model.tokenizers.bundle import TokenizerBundle

    def shape() -> GeneratorConfig:
        if isinstance(model, GeneratorConfig):
            return model
        return generator_config(model, TokenizerBundle.load(tokenizers), Shards(shards, "train"))

    start = parent_checkpoint if settings.initialize_from == "parent" else None
    training = optimize(settings, settings.objective, shape, shards, tokenizers, start, work, checkpoint)
    return TrainingResult(
        training["parameters"], training["seconds"], training["last"]["coarse_loss"], training["heldout_loss"]
    )


def optimize(
    settings: OptimizationSettings,
    objective: Objective,
    shape_of: Callable[[], GeneratorConfig],
    shards: Path,
    tokenizers: Path,
    start_from: Path | None,
    work: Path,
    checkpoint: Path,
) -> dict[str, Any]:
    """Run the ranks and leave a checkpoint; what `train` and `adapt` share. Returns the content of `training.json`."""
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
            f"global_batch_size {settings.global_batch_size} is not a multiple of {settings.processes} processes",
            where=type(settings).__name__,
            fix="change one of them",
        )
    shape = shape_of()
    job = Job(
        training=OptimizationSettings.model_validate(
            settings.model_dump(include=set(OptimizationSettings.model_fields))
        ),
        objective=objective,
        model=shape,
        shards=shards.resolve(),
        shards_digest=shards_digest,
        tokenizers_digest=bundle.digest,
        unconditional_prompt=tuple(bundle.text.unconditional_prompt(cut.layout.text_length)),
        start_from=start_from.resolve() if start_from else None,
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
    return training


def generator_config(model: ModelSettings, bundle: "TokenizerBundle", shards: "Shards") -> GeneratorConfig:
    """The whole shape: what was chosen, with the vocabularies of the tokenizers and the sizes of the records."""
    return GeneratorConfig(
        **model.model_dump(),
        text_vocabulary=bundle.text.vocabulary,
        text_length=shards.layout.text_length,
        visual_levels=bundle.visual.config.levels,
        coarse_grid=shards.layout.coarse_grid,
    )

"""The training step: check the inputs, run the ranks, leave a checkpoint."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import DigestMismatchError, MemoryLackError
from common.files import read_json
from components.train.job import Job
from components.train.launcher import Launcher, LocalLauncher
from components.train.layouts import check_layout
from components.train.memory import noticing_lack_of_memory
from components.train.micro_batch import fitting_micro_batch
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
    launcher: Launcher | None = None,
) -> TrainingResult:
    """Train a generator on `shards` and write `checkpoint/`.

    `work` survives an interruption: a second call with the same settings and data goes on from the newest state
    in it. What `model` leaves open follows from the tokenizers and the shards; a whole shape is taken as it is, and may
    have the image's own grid for its sketch. The `launcher` starts the ranks; None: on this machine. Raises `TrainingError` when a rank fails, `DigestMismatchError` when a shard
    is not the one that was written or the shards were cut with other tokenizers, `DataError` where a shard is empty.
    """
    inputs = verified_inputs(shards, tokenizers)
    shape = model if isinstance(model, GeneratorConfig) else generator_config(model, inputs.bundle, inputs.cut)
    start = parent_checkpoint if settings.initialize_from == "parent" else None
    training = optimize("training", settings, settings.objective, shape, inputs, start, work, checkpoint, launcher)
    return TrainingResult(
        training["parameters"], training["seconds"], training["last"]["coarse_loss"], training["heldout_loss"]
    )


@dataclass(frozen=True)
class Inputs:
    """Shards whose files are those that were written, and the tokenizers that they were cut with."""

    shards: Path
    shards_digest: str
    cut: "Shards"
    """The split that is trained on."""
    tokenizers: Path
    bundle: "TokenizerBundle"


def verified_inputs(shards: Path, tokenizers: Path) -> Inputs:
    """Raises `DigestMismatchError` when a shard is not the one that was written or the shards were cut with other
    tokenizers, `DataError` where a shard is empty."""
    from model.data.shards import Shards, verify_shards
    from model.tokenizers.bundle import TokenizerBundle

    digest = verify_shards(shards)
    inputs = Inputs(shards, digest, Shards(shards, "train"), tokenizers, TokenizerBundle.load(tokenizers))
    if inputs.cut.tokenizers_digest != inputs.bundle.digest:
        raise DigestMismatchError(
            "the shards were cut with other tokenizers", where=str(shards), fix="run the tokenize step again"
        )
    return inputs


def optimize(
    section: str,
    settings: OptimizationSettings,
    objective: Objective,
    shape: GeneratorConfig,
    inputs: Inputs,
    start_from: Path | None,
    work: Path,
    checkpoint: Path,
    launcher: Launcher | None = None,
) -> dict[str, Any]:
    """Run the ranks and leave a checkpoint; what `train` and `adapt` share. Returns the content of `training.json`.

    `section` is where a user finds the settings. Ranks run where the `launcher` starts them; None: on this machine. Raises
    `UsageError` for a layout that does not go, `TrainingError` when a rank fails, `MemoryLackError` when memory ran out.
    """
    import torch

    from model.checkpoint import load_tensors, save_checkpoint
    from model.transformer.model import Generator

    launcher = launcher or LocalLauncher()
    share = check_layout(section, settings, shape, objective, launcher.nodes)
    job = Job(
        training=OptimizationSettings.model_validate(
            settings.model_dump(include=set(OptimizationSettings.model_fields))
        ),
        objective=objective,
        model=shape,
        shards=inputs.shards.resolve(),
        shards_digest=inputs.shards_digest,
        tokenizers_digest=inputs.bundle.digest,
        unconditional_prompt=tuple(inputs.bundle.text.unconditional_prompt(inputs.cut.layout.text_length)),
        start_from=start_from.resolve() if start_from else None,
        work=work.resolve(),
    )
    work.mkdir(parents=True, exist_ok=True)
    if settings.parallel.micro_batch_size == "auto":
        _run_fitting(job, launcher, share, work.parent.parent / "micro-batch-sizes")
    else:
        _run(job, launcher)
    training = read_json(work / "training.json")
    with torch.no_grad():
        generator = Generator(shape)
        generator.load_state_dict(load_tensors(work / "final.safetensors"))
    save_checkpoint(checkpoint, generator, inputs.tokenizers, training)
    shutil.copyfile(work / "curves.jsonl", checkpoint / "curves.jsonl")
    return training


def _run_fitting(job: Job, launcher: Launcher, share: int, cache: Path) -> None:
    """A training that runs out of memory all the same makes the next one, a resume say, try again how much fits."""
    found = fitting_micro_batch(job, launcher, share, cache)
    try:
        _run(job.with_micro_batch(found.size), launcher)
    except MemoryLackError:
        found.file.unlink(missing_ok=True)
        raise


def _run(job: Job, launcher: Launcher) -> None:
    file = job.work / "job.json"
    job.write(file)
    with noticing_lack_of_memory(job.work):
        launcher.run(job.ranks(file))


def generator_config(model: ModelSettings, bundle: "TokenizerBundle", shards: "Shards") -> GeneratorConfig:
    """The whole shape: what was chosen, with the vocabularies of the tokenizers and the sizes of the records."""
    return GeneratorConfig(
        **model.model_dump(),
        text_vocabulary=bundle.text.vocabulary,
        text_length=shards.layout.text_length,
        visual_levels=bundle.visual.config.levels,
        coarse_grid=shards.layout.coarse_grid,
        detail_stages=shards.layout.detail_stages,
    )

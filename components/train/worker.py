"""One rank of a training: `torchrun … -m components.train.worker JOB.json`."""

import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from common.errors import TrainingError
from common.files import digest_json
from common.processes import die_with_parent
from components.train.batches import HeldoutLessons, LessonSource
from components.train.curves import Curves
from components.train.evaluation import Evaluation, evaluated_before
from components.train.finish import finish, leave_weights
from components.train.heartbeat import Heartbeat
from components.train.job import Job
from components.train.layouts import layout_of
from components.train.loop import Callback, Every, train_steps
from components.train.memory import telling_lack_of_memory
from components.train.meter import Meter
from components.train.optimizer import make_optimizer, use_bf16
from components.train.settings import OptimizationSettings
from components.train.sizes import micro_batch_size
from components.train.states import States
from model.checkpoint import load_checkpoint
from model.data.shards import Shards
from model.objectives.lesson import Lesson
from model.parallel.engine import Engine, EngineOptions
from model.parallel.generator_engine import GeneratorTask, generator_engine
from model.parallel.layout import ParallelLayout
from model.parallel.place import limit_waiting
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

_START_LIMIT = timedelta(minutes=30)
"""For what the ranks do together before the first step: reading and verifying a state, say."""
_OF_OTHER_RANKS = re.compile(r"gloo|[Cc]onnection (closed|reset)|[Tt]imed out|NCCL")
_log = logging.getLogger(__name__)


def run(job: Job) -> None:
    """Train to the last step, then leave weights, curves and the held-out loss in the work folder (rank 0)."""
    settings, shards = job.training, Shards(job.shards, "train")
    layout = layout_of(settings, job.model, dist.get_world_size(), where="parallel")
    engine, lessons = open_engine(job, shards, layout)
    timeout_s = settings.step_timeout_s
    states = States(job.work, fingerprint(job), engine, kept=settings.states_kept, timeout_s=timeout_s)
    first_step = states.restore()
    _log.info("rank %d of %s trains steps %d to %d", dist.get_rank(), layout, first_step + 1, settings.steps)
    callbacks: list[Callback] = [Every(settings.checkpoint_every_steps, settings.steps, states.save)]
    meter = make_meter(job, len(shards), first_step) if dist.get_rank() == 0 else None
    if meter is not None:
        callbacks.insert(0, meter)
    stopped = False
    if settings.evaluate_every_steps:
        heldout = HeldoutLessons(lessons, Shards(job.shards, "heldout"))
        before = evaluated_before(job.work / "curves.jsonl", first_step)
        evaluation = Evaluation(engine, heldout, settings, meter and meter.curves, before)
        callbacks.append(evaluation)
        stopped = evaluation.no_better  # what goes on from its last state had ended there
    pulse = Heartbeat(job.work / "ranks", dist.get_rank(), dist.get_world_size(), timeout_s)
    limit_waiting(timeout_s)
    with telling_who_hangs(pulse, timeout_s):
        done = first_step
        if not stopped:
            done = train_steps(engine, lessons, settings, first_step, callbacks, pulse)
        if meter is not None:
            meter.close(done)
        if done > first_step:
            states.save(done)  # what follows scores the whole model on one rank: should that fail, no step is lost
        states.wait()
        leave_weights(job.work, engine)
    pulse.close()
    if meter is not None:
        finish(job, layout, meter, first_step=first_step, steps=done)


@contextmanager
def telling_who_hangs(pulse: Heartbeat, timeout_s: float) -> Iterator[None]:
    """Raises `TrainingError` where gloo says that a rank is gone, or has not answered in time; what NCCL does then, it does
    to the whole process, and the heartbeat has told before."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or _OF_OTHER_RANKS.search(str(error))):
            raise
        raise TrainingError(
            f"the ranks could not go on together: {pulse.who_hangs()} ({error})",
            where=f"rank {dist.get_rank()}",
            fix=f"a collective, or writing a state, may take training.step_timeout_s, {timeout_s:g} s",
        ) from error


def open_engine(job: Job, shards: Shards, layout: ParallelLayout) -> tuple[Engine[Lesson], LessonSource]:
    """The model on this rank, and where its lessons come from."""
    settings = job.training
    micro_batch = micro_batch_size(settings, job.model, job.objective, layout.data)
    options = EngineOptions(
        layout=layout,
        seed=settings.seed,
        micro_batch=micro_batch,
        accumulation=settings.global_batch_size // layout.data // micro_batch,
        gradient_clipping=settings.gradient_clipping,
        zero=settings.parallel.zero,
        bf16=use_bf16(settings),
        checkpointing=settings.parallel.activation_checkpointing,
        compiled=settings.compile_blocks,
    )

    def weigh(losses: dict[str, Tensor]) -> Tensor:
        return weighted(losses, settings)

    task = GeneratorTask(
        shape=job.model, objective=job.objective, label_smoothing=settings.masking.label_smoothing, weigh=weigh
    )
    engine = generator_engine(options, task, lambda model: make_optimizer(model, settings), start_weights(job))
    data = engine.place.data
    lessons = LessonSource(
        shards, settings, job.model, job.objective, job.unconditional_prompt, rank=data, ranks=layout.data
    )
    return engine, lessons


def weighted(losses: dict[str, Tensor], settings: OptimizationSettings) -> Tensor:
    """The one number that is made smaller."""
    weights = {"coarse_loss": 1.0, "plan_loss": settings.plan_loss_weight}
    of_details = settings.fine_loss_weight / max(len(losses.keys() - weights), 1)
    return torch.stack([weights.get(name, of_details) * loss for name, loss in losses.items()]).sum()


def start_weights(job: Job) -> dict[str, Tensor] | None:
    """Those of the checkpoint to start from; None starts from the seed. Raises `TrainingError` for another shape."""
    if job.start_from is None:
        return None
    start = load_checkpoint(job.start_from)
    if start.config.model_copy(update=_windows(job.model)) != job.model:
        raise TrainingError(
            "the checkpoint to start from has another shape",
            where=str(job.start_from),
            fix="set training.initialize_from=scratch",
        )
    return start.state_dict()


def _windows(shape: GeneratorConfig) -> dict[str, int | None]:
    """What of a shape holds no weights: a checkpoint may be trained on with other windows."""
    return {"sketch_window": shape.sketch_window, "fine_window": shape.fine_window}


def fingerprint(job: Job) -> dict[str, str]:
    """Digests of what a saved state depends on besides the step; not on how many ranks share the work, nor on how often
    anything is told or saved."""
    spread = {
        "processes",
        "threads_per_process",
        "parallel",
        "compile_blocks",
        "step_timeout_s",
        "largest_skips",
        "restarts",
    }
    told = {"checkpoint_every_steps", "states_kept", "log_every_steps", "evaluate_every_steps", "early_stop_after"}
    parts = {
        "settings": job.training.model_dump(mode="json", exclude=spread | told),
        "objective": job.objective,
        "starting weights": str(job.start_from),
        "model": job.model.model_dump(mode="json"),
        "data": job.shards_digest,
        "code": os.environ.get("EMUFLOW_IMAGE", ""),
    }
    return {name: digest_json(part) for name, part in parts.items()}


def make_meter(job: Job, samples: int, first_step: int) -> Meter:
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in Generator(job.model).parameters())
    curves = Curves(job.work / "curves.jsonl", first_step)
    return Meter(
        job.training,
        job.model,
        curves,
        first_step=first_step,
        samples=samples,
        parameters=parameters,
        ranks=dist.get_world_size(),
    )


def main() -> None:
    die_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    job = Job.read(Path(sys.argv[1]))
    deepspeed.init_distributed(
        "nccl" if torch.cuda.is_available() else "gloo",
        timeout=_START_LIMIT,
        verbose=False,
    )
    try:
        with telling_lack_of_memory(job.work):
            run(job)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

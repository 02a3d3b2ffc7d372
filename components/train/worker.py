"""One rank of a training: `torchrun … -m components.train.worker JOB.json`.

Load, step, save; the loop reads from top to bottom in `run`.
"""

import logging
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn

from common.errors import TrainingError
from common.files import digest_json, write_json
from common.processes import die_with_parent
from common.progress import report
from components.train.batches import BatchSource
from components.train.curves import Curves
from components.train.job import Job
from components.train.optimizer import MuonWithAdamW, learning_rate_at, use_bf16
from components.train.resume import load_state, save_state
from components.train.settings import OptimizationSettings
from model.checkpoint import load_checkpoint, save_tensors
from model.data.grids import Grids, read_grids
from model.data.shards import Shards
from model.objectives.heldout import heldout_losses, heldout_next_token_losses
from model.objectives.lesson import Lesson, draw_lesson
from model.objectives.losses import lesson_losses
from model.objectives.masked import drop_prompts
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.plan import Plan

_log = logging.getLogger(__name__)


class LossOfStep(nn.Module):
    """The generator with its loss, so that one forward pass of the DeepSpeed engine is one training step."""

    def __init__(self, generator: Generator, settings: OptimizationSettings):
        super().__init__()
        self.generator, self.settings = generator, settings

    def forward(self, lesson: Lesson) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted loss, and its parts in nats per token."""
        losses = lesson_losses(self.generator, lesson)
        weights = {"coarse_loss": 1.0, "plan_loss": self.settings.plan_loss_weight}
        of_details = self.settings.fine_loss_weight / max(len(lesson.details), 1)
        return torch.stack([weights.get(name, of_details) * loss for name, loss in losses.items()]).sum(), losses


def run(job: Job) -> None:
    """Train to the last step, then leave weights, curves and the held-out loss in the work folder (rank 0)."""
    settings, rank, ranks = job.training, dist.get_rank(), dist.get_world_size()
    device = rank_device()
    generator = initial_model(job).to(device)
    optimizer = MuonWithAdamW(generator, settings)
    first_step = load_state(job.work, fingerprint(job), generator, optimizer)
    _log.info("rank %d of %d trains steps %d to %d", rank, ranks, first_step + 1, settings.steps)
    engine = deepspeed_engine(LossOfStep(generator, settings), optimizer, settings)
    shards = Shards(job.shards, "train")
    batches = BatchSource(shards, settings, job.model, rank, ranks)
    curves = Curves(job.work / "curves.jsonl", first_step) if rank == 0 else None
    meter = Meter(first_step, settings)

    for step in range(first_step, settings.steps):
        frozen, learning_rate = step >= settings.plan_frozen_from * settings.steps, learning_rate_at(step, settings)
        if frozen and generator.plan is not None and not generator.plan.frozen:
            freeze(generator.plan)
        optimizer.set_learning_rate(learning_rate, plan_encoder=0.0 if frozen else learning_rate)
        masks = torch.Generator().manual_seed(((settings.seed * 1_000_003 + step) * 4096 + rank) % 2**63)
        lesson = lesson_of_step(job, batches.batch(step), step, masks)
        loss, parts = engine(lesson.map(lambda tensor: tensor.to(device)))
        stop_unless_finite(loss, step, rank)
        engine.backward(loss)
        engine.step()
        meter.add(parts)
        if curves and ((step + 1) % settings.log_every_steps == 0 or step + 1 == settings.steps):
            curves.log(step + 1, learning_rate=learning_rate, **meter.take(step + 1))
            _log.info("step %d of %d: %s", step + 1, settings.steps, meter.message)
        if rank == 0:
            report(step + 1, settings.steps, meter.message)
            if (step + 1) % settings.checkpoint_every_steps == 0 and step + 1 < settings.steps:
                save_state(job.work, step + 1, fingerprint(job), generator, optimizer)

    if rank == 0:
        finish(job, generator, meter, first_step)
    dist.barrier()


def rank_device() -> torch.device:
    """This rank's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def initial_model(job: Job) -> Generator:
    """The same weights on every rank: those of a checkpoint, or drawn from the seed."""
    torch.manual_seed(job.training.seed)
    if job.start_from is not None:
        start = load_checkpoint(job.start_from)
        if start.config.model_copy(update=_windows(job.model)) != job.model:
            raise TrainingError(
                "the checkpoint to start from has another shape",
                where=str(job.start_from),
                fix="set training.initialize_from=scratch",
            )
        generator = Generator(job.model)
        generator.load_state_dict(start.state_dict())
        return generator.train()
    return Generator(job.model).train()


def _windows(shape: GeneratorConfig) -> dict[str, int | None]:
    """What of a shape holds no weights: a checkpoint may be trained on with other windows."""
    return {"sketch_window": shape.sketch_window, "fine_window": shape.fine_window}


def fingerprint(job: Job) -> str:
    """What a saved state depends on besides the step: settings, model, data, and the code that trains."""
    return digest_json(
        {
            "training": job.training.model_dump(mode="json"),
            "objective": job.objective,
            "start_from": str(job.start_from),
            "model": job.model.model_dump(mode="json"),
            "shards": job.shards_digest,
            "code": os.environ.get("EMUFLOW_IMAGE", ""),
        }
    )


def deepspeed_engine(
    objective: LossOfStep, optimizer: MuonWithAdamW, settings: OptimizationSettings
) -> deepspeed.DeepSpeedEngine:
    """Data parallel (ZeRO-0: the state of 1M parameters is smaller than what sharding it would cost)."""
    config = {
        "train_batch_size": settings.global_batch_size,
        "gradient_clipping": settings.gradient_clipping,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": use_bf16(settings), "dtype": "bfloat16"},
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
    return engine


def lesson_of_step(job: Job, batch: Grids, step: int, masks: torch.Generator) -> Lesson:
    """What a step asks about its images: the details on every n-th step, of a share of them."""
    settings, fine_rows = job.training, 0
    batch = drop_prompts(batch, settings.masking.unconditional_share, job.unconditional_prompt, masks)
    if step % settings.fine_every_steps == 0 and job.model.fine_layers:
        fine_rows = max(1, round(len(batch.coarse) * settings.fine_batch_share))
    return draw_lesson(job.objective, batch, job.model, settings.masking, masks, fine_rows)


def freeze(plan: Plan) -> None:
    """No plan changes any more, and all ranks give an image the same one: their batches' means and variances differ."""
    plan.freeze()
    for buffer in plan.encoder.buffers():
        dist.broadcast(buffer, 0)


def stop_unless_finite(loss: Tensor, step: int, rank: int) -> None:
    """Raise `TrainingError` before a loss that is not a number reaches any weight."""
    if not torch.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss.item()} at step {step} on rank {rank}",
            where="training",
            fix="lower training.learning_rate, or look at the data of this step",
        )


class Meter:
    """Means of the losses since the last point of the curve, and the speed."""

    def __init__(self, first_step: int, settings: OptimizationSettings):
        self._sums: dict[str, list[float]] = {}
        self._step, self._time, self._batch = first_step, time.monotonic(), settings.global_batch_size
        self.message = ""
        self.last: dict[str, float] = {}
        self.seconds = 0.0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self._sums.setdefault(name, []).append(value.item())

    def take(self, step: int) -> dict[str, float]:
        """The means, and images per second over all ranks."""
        now = time.monotonic()
        self.seconds += now - self._time
        self.last = {name: sum(values) / len(values) for name, values in self._sums.items()}
        self.last["images_per_second"] = (step - self._step) * self._batch / (now - self._time)
        self._sums, self._step, self._time = {}, step, now
        self.message = f"loss {self.last.get('coarse_loss', 0):.3f}, {self.last['images_per_second']:.0f} images/s"
        return self.last


def finish(job: Job, generator: Generator, meter: Meter, first_step: int) -> None:
    """Write the final weights and what is known about them."""
    generator.eval()
    heldout = Shards(job.shards, "heldout")
    score = heldout_next_token_losses if job.objective == "next_token" else heldout_losses
    losses = score(generator.cpu(), read_grids(heldout, list(range(len(heldout))), job.model))
    save_tensors(job.work / "final.safetensors", generator.state_dict())
    write_json(
        job.work / "training.json",
        {
            "objective": job.objective,
            "steps": job.training.steps,
            "first_step": first_step,
            "seconds": meter.seconds,
            "ranks": dist.get_world_size(),
            "precision": "bf16" if use_bf16(job.training) else "fp32",
            "parameters": sum(parameter.numel() for parameter in generator.parameters()),
            "last": meter.last,
            "heldout_loss": sum(losses) / len(losses),
            "heldout_loss_per_sample": losses,
            "tokenizers_digest": job.tokenizers_digest,
            "unconditional_share": job.training.masking.unconditional_share,
        },
    )


def main() -> None:
    die_with_parent(signal.SIGKILL)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    job = Job.read(Path(sys.argv[1]))
    deepspeed.init_distributed(
        "nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(seconds=job.training.step_timeout_s),
        verbose=False,
    )
    try:
        run(job)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()

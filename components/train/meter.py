"""What a training tells while it goes on: a line of progress, a point of the curves every few steps."""

import logging
import resource
import time

import torch

from common.progress import report
from components.train.curves import Curves
from components.train.optimizer import learning_rate_at
from components.train.settings import OptimizationSettings
from model.parallel.engine import Step
from model.parallel.plan.hardware import GPUS
from model.transformer.config import GeneratorConfig

_log = logging.getLogger(__name__)


class Meter:
    """Means since the last point of the curve. On rank 0."""

    def __init__(
        self,
        settings: OptimizationSettings,
        shape: GeneratorConfig,
        curves: Curves,
        *,
        first_step: int,
        samples: int,
        parameters: int,
        ranks: int,
    ):
        """`samples` are those of an epoch, `parameters` those of the whole model."""
        self._settings, self.curves, self._samples = settings, curves, samples
        self._tokens = tokens_per_step(settings, shape)
        self._flops, self._peak_flops = 6.0 * parameters * self._tokens, peak_flops(ranks)
        self._steps: list[Step] = []
        self._begun = self._at = time.monotonic()
        self._first_step = first_step
        self.last: dict[str, float] = dict(curves.last)
        self._skipped = int(self.last.get("steps_skipped", 0))  # those of a training that goes on, too

    def after(self, done: int, step: Step) -> None:
        settings = self._settings
        self._steps.append(step)
        self._skipped += not step.stepped
        # A training that goes on from a state finds its counts in the point of the same step.
        points_at = (settings.log_every_steps, settings.checkpoint_every_steps, settings.steps)
        if any(done % each == 0 for each in points_at):
            self._take(done)
            _log.info("step %d of %d: %s, %s left", done, settings.steps, self._speed(done), self._left(done))
        report(done, settings.steps, self._speed(done))  # who shows it tells the time that is left

    @property
    def seconds(self) -> float:
        """What was trained for up to the last point, with what came before an interruption."""
        return self.last.get("training_seconds", 0.0)

    def close(self, done: int) -> None:
        """The training has ended after `done` steps."""
        if self._steps:
            self._take(done)

    def _take(self, done: int) -> None:
        now, settings = time.monotonic(), self._settings
        seconds, steps, self._at, self._steps = now - self._at, self._steps, now, []
        moved = [step for step in steps if step.stepped]  # what is skipped has no loss that means anything
        names = dict.fromkeys(name for step in moved for name in step.parts)
        parts = {name: [step.parts[name] for step in moved if name in step.parts] for name in names}
        self.last |= {name: sum(values) / len(values) for name, values in parts.items()}
        if moved:
            self.last["gradient_norm"] = moved[-1].norm
        position = done * settings.global_batch_size
        self.last |= {
            "images_per_second": len(steps) * settings.global_batch_size / seconds,
            "tokens_per_second": len(steps) * self._tokens / seconds,
            "steps_skipped": float(self._skipped),
            "training_seconds": self.seconds + seconds,
            "memory_bytes": float(memory_bytes()),
            "epoch": position / self._samples,
        }
        if self._peak_flops is not None:
            self.last["mfu"] = len(steps) * self._flops / seconds / self._peak_flops
        rate = learning_rate_at(done - 1, settings)
        self.curves.log(done, learning_rate=rate, **self.last)

    def _each_s(self, done: int) -> float:
        return (time.monotonic() - self._begun) / (done - self._first_step)

    def _speed(self, done: int) -> str:
        loss = f"loss {self.last['coarse_loss']:.3f}, " if "coarse_loss" in self.last else ""
        return f"{loss}{self._settings.global_batch_size / self._each_s(done):.0f} images/s"

    def _left(self, done: int) -> str:
        return _duration(self._each_s(done) * (self._settings.steps - done))


def tokens_per_step(settings: OptimizationSettings, shape: GeneratorConfig) -> float:
    """Tokens that the blocks compute in a step: prompts and sketches, and the details of those images that show them."""
    sketch = shape.text_length + shape.coarse_tokens
    grids = shape.grids[:-1] if shape.fine_layers else ()
    share = settings.fine_batch_share / settings.fine_every_steps * shape.fine_layers / shape.num_hidden_layers
    details = sum(
        (shape.text_length + rows * columns) * share / 4**stage for stage, (rows, columns) in enumerate(grids)
    )
    return settings.global_batch_size * (sketch + details)


def peak_flops(ranks: int) -> float | None:
    """bf16 operations per second of the GPUs of all ranks; None where their kind is not known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    known = [gpu for key, gpu in GPUS.items() if key.lower() in name]
    return known[0].bf16_flops * ranks if known else None


def memory_bytes() -> int:
    """The most that this rank has held: of its GPU's memory, else of the machine's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

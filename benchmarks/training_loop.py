"""The pipeline's own training loop, timed from inside: `torchrun … -m benchmarks.training_loop QUESTION.json`.

One rank trains the generator on shards of random codes, with the loop, the curves, the progress and the states of a run.
What is timed of a step itself is the engine's: forward, backward, the gradients' norm and the optimizer.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist

from benchmarks.training import Amount, pin
from components.train.heartbeat import Heartbeat
from components.train.job import Job
from components.train.layouts import layout_of
from components.train.loop import Every, train_steps
from components.train.settings import OptimizationSettings
from components.train.states import States
from components.train.worker import make_meter, open_engine
from model.data.shards import RecordLayout, Shards, ShardWriter, write_manifest
from model.objectives.lesson import Lesson
from model.parallel.engine import Engine, Step
from model.transformer.config import GeneratorConfig

_SAMPLES = 512
_SAVED_EVERY = 20


class Timed:
    """An engine whose steps are timed."""

    def __init__(self, engine: Engine[Lesson]):
        self._engine, self.seconds = engine, list[float]()

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def step(self, lessons: Sequence[Lesson]) -> Step:
        begun = time.perf_counter()
        step = self._engine.step(lessons)
        self.seconds.append(time.perf_counter() - begun)
        return step


class Ends:
    """When each step with all that surrounds it had ended; the last of the callbacks."""

    def __init__(self) -> None:
        self.at = [time.perf_counter()]

    def after(self, done: int, step: Step) -> None:
        self.at.append(time.perf_counter())


class TimedStates(States):
    """Tells how long a state took to write."""

    def __init__(self, *arguments: object, **named: object):
        super().__init__(*arguments, **named)  # pyright: ignore[reportArgumentType]
        self.written_s: list[float] = []

    def _write(self, step: int, stage: int, tensors: dict[str, torch.Tensor]) -> None:
        begun = time.perf_counter()
        super()._write(step, stage, tensors)
        self.written_s.append(time.perf_counter() - begun)


def write_shards(folder: Path, layout: RecordLayout, shape: GeneratorConfig) -> None:
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for split, count in (("train", _SAMPLES), ("heldout", 8)):
        with ShardWriter(folder, split, layout) as writer:
            text = random.integers(0, shape.text_vocabulary, size=(count, layout.text_length))
            grids = [
                random.integers(0, shape.visual_vocabulary, size=(count, rows * columns))
                for rows, columns in layout.grids
            ]
            writer.add([f"{row:064x}" for row in range(count)], text, grids)
    write_manifest(folder, layout, {"train": _SAMPLES, "heldout": 8}, tokenizers_digest="0" * 64, table_sha256="")


def make_job(folder: Path, amount: Amount) -> Job:
    shape = GeneratorConfig(
        hidden_size=amount.loop_hidden,
        intermediate_size=amount.loop_hidden * 11 // 4,
        num_hidden_layers=amount.loop_layers,
        num_attention_heads=max(1, amount.loop_hidden // 64),
        num_key_value_heads=max(1, amount.loop_hidden // 64),
        fine_layers=2,
    )
    layout = RecordLayout(text_length=shape.text_length, coarse_grid=shape.coarse_grid)
    write_shards(folder / "shards", layout, shape)
    settings = OptimizationSettings(
        steps=amount.loop_steps,
        processes=1,
        global_batch_size=8,
        optimizer="adamw",
        learning_rate=1e-4,
        precision="fp32",
        checkpoint_every_steps=_SAVED_EVERY,
    )
    return Job(
        training=settings,
        objective="parallel",
        model=shape,
        shards=folder / "shards",
        shards_digest="0" * 64,
        tokenizers_digest="0" * 64,
        unconditional_prompt=(),
        start_from=None,
        work=folder / "work",
    )


def main() -> None:
    file = Path(sys.argv[1])
    question = json.loads(file.read_text())
    amount = Amount(**{key: question[key] for key in Amount.__dataclass_fields__})
    pin(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed("nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    job = make_job(Path(question["folder"]), amount)
    settings, shards = job.training, Shards(job.shards, "train")
    engine, lessons = open_engine(job, shards, layout_of(settings, job.model, dist.get_world_size(), where="benchmark"))
    timed, ends = Timed(engine), Ends()
    states = TimedStates(job.work, {}, engine, kept=2, timeout_s=300)
    saved = list(range(_SAVED_EVERY, settings.steps, _SAVED_EVERY))
    callbacks = [make_meter(job, len(shards), 0), Every(_SAVED_EVERY, settings.steps, states.save), ends]
    pulse = Heartbeat(job.work / "ranks", dist.get_rank(), dist.get_world_size(), settings.step_timeout_s)
    ends.at[0] = time.perf_counter()
    train_steps(timed, lessons, settings, 0, callbacks, pulse)  # pyright: ignore[reportArgumentType]
    states.wait()
    pulse.close()
    loop_s = np.diff(ends.at).tolist()
    # The first step prepares what the others find ready.
    found = {
        "loop_s": loop_s[1:],
        "step_s": timed.seconds[1:],
        "saved_after": [step - 1 for step in saved],
        "tokens": settings.global_batch_size * (job.model.text_length + job.model.coarse_tokens),
        "parameters": sum(parameter.numel() for part in engine.parts for parameter in part.parameters()),
        "state_bytes": sum(path.stat().st_size for path in job.work.glob("state-*/*.safetensors")) // 2,
        "written_s": states.written_s,
    }
    file.write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""What the ranks of a test's world do: train a tiny generator for some steps, from given weights, and leave what came out.

Every world trains on the same micro-batches with the same masks. A job's folder gets, from the ranks that hold whole
tensors, `gradients-*.safetensors` (of the first step, as the optimizer is given them) and `weights-*.safetensors` (after
the last), and `steps.json`.
"""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from components.train.states import States
from model.data.grids import Grids
from model.objectives.lesson import Lesson, draw_lesson
from model.objectives.settings import MaskingSettings
from model.parallel import collectives, guard, tensor
from model.parallel.decoder_engine import Tokens, decoder_engine
from model.parallel.engine import Engine, EngineOptions, Step
from model.parallel.generator_engine import GeneratorTask, generator_engine
from model.parallel.layout import ParallelLayout
from model.parallel.whole import gather_whole
from model.transformer.config import DecoderConfig, GeneratorConfig
from model.transformer.decoder import Decoder
from model.transformer.model import Generator

SHAPE = GeneratorConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    fine_layers=2,
    plan_tokens=4,
    text_vocabulary=65,  # odd sizes do not cut evenly
    text_length=6,
    visual_levels=(5, 3, 3),
    coarse_grid=(4, 4),
)
DECODERS = {
    name: DecoderConfig(
        vocab_size=65,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    for name, tied in (("tokens", False), ("tied tokens", True))
}
MICRO_BATCH, MICRO_BATCHES = 2, 4
MASKING = MaskingSettings(label_smoothing=0.1)
LEARNING_RATE = 1e-3
POISON: list[float] = []
"""What this rank's loss is multiplied with, if anything."""


class Watched(torch.optim.AdamW):
    """Keeps the gradients of its first step."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if not hasattr(parameter, "first_gradient") and parameter.grad is not None:
                    parameter.first_gradient = parameter.grad.clone()
        super().step(closure)


Zero = int


@dataclass(frozen=True)
class Job:
    """One training of a world."""

    name: str
    objective: str
    """One of the generator's, or `tokens` or `tied tokens`: a plain decoder, whose head may be its embedding."""
    steps: int = 1
    frozen: bool = False
    """Whether images keep the plans that the first weights make of them. A plan is a code: a difference in the last bit of
    a value can make it another one, and the trainings then are two."""
    zero: Zero = 0
    checkpointing: bool = False
    compiled: bool = False
    omit: str | None = None
    """Where the ranks tell each other nothing."""
    states: str | None = None
    """A folder beside the worlds' for states, from which the training goes on where there is one."""
    saved_after: tuple[int, ...] = ()
    """The steps after which a state is saved there."""
    poisoned: tuple[int, int] | None = None
    """A step and a rank whose loss is then no number."""
    details_every: int = 1
    """Steps from one that asks the details to the next."""
    bf16: bool = False


def run(job: Job, layout: ParallelLayout, folder: Path) -> None:
    """Train, and leave what came out in a folder of the job's name."""
    with left_out(job.omit):
        engine = tiny_engine(layout, job)
        for part in engine.parts:
            if job.frozen and isinstance(part, Generator) and part.plan is not None:
                part.plan.freeze()
        steps = train(engine, job, folder.parent / job.states if job.states else None)
        evaluated = engine.evaluate(own_batches(engine, job, 990))
        weights, gradients = engine.weights(), gather_whole(engine.parts, engine.place.tensor, first_gradient)
    (folder / job.name).mkdir(parents=True, exist_ok=True)
    if engine.place.holds_whole:
        save_file(weights, folder / job.name / f"weights-{engine.place.stage}.safetensors")
        save_file(gradients, folder / job.name / f"gradients-{engine.place.stage}.safetensors")
    if dist.get_rank() == 0:
        (folder / job.name / "steps.json").write_text(json.dumps([asdict(step) for step in steps]))
        (folder / job.name / "evaluated.json").write_text(json.dumps(evaluated))


def train(engine: Engine[Any], job: Job, states_folder: Path | None) -> list[Step]:
    states, first, steps = None, 0, []
    if states_folder is not None:
        states = States(states_folder, {"data": "the same"}, engine, kept=2, timeout_s=60)
        first = states.restore()
    for number in range(first, job.steps):
        POISON.clear()
        if job.poisoned is not None and tuple(job.poisoned) == (number, dist.get_rank()):
            POISON.append(math.nan)
        before = engine.weights() if job.poisoned is not None else {}
        steps.append(engine.step(own_batches(engine, job, number)))
        if job.poisoned is not None and job.poisoned[0] == number:
            after = engine.weights()
            assert all(torch.equal(after[name], before[name]) for name in before), "a skipped step moved a weight"
        if states is not None and number + 1 in job.saved_after:
            states.save(number + 1)
    if states is not None:
        states.wait()
    return steps


def tiny_engine(layout: ParallelLayout, job: Job) -> Engine[Any]:
    options = EngineOptions(
        layout=layout,
        seed=1,
        micro_batch=MICRO_BATCH,
        accumulation=MICRO_BATCHES // layout.data,
        gradient_clipping=1.0,
        zero=job.zero,  # pyright: ignore[reportArgumentType]
        bf16=job.bf16,
        checkpointing=job.checkpointing,
        compiled=job.compiled,
    )
    start = initial_weights(job.objective)
    if job.objective in DECODERS:
        return decoder_engine(options, DECODERS[job.objective], make_optimizer, start)
    task = GeneratorTask(
        shape=SHAPE,
        objective=job.objective,  # pyright: ignore[reportArgumentType]
        label_smoothing=MASKING.label_smoothing,
        weigh=weigh,
    )
    return generator_engine(options, task, make_optimizer, start)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return Watched(model.parameters(), LEARNING_RATE)


def weigh(losses: dict[str, Tensor]) -> Tensor:
    weights = {"coarse_loss": 1.0, "plan_loss": 0.6, "fine_loss": 0.8}
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum() * (POISON[0] if POISON else 1)


def initial_weights(objective: str = "parallel") -> dict[str, Tensor]:
    torch.manual_seed(0)
    return (Decoder(DECODERS[objective]) if objective in DECODERS else Generator(SHAPE)).state_dict()


def own_batches(engine: Engine[Any], job: Job, step: int) -> list[Any]:
    """This data-parallel rank's micro-batches of a step."""
    place, draw = engine.place, tokens if job.objective in DECODERS else lesson
    return [draw(job, step, number) for number in range(place.data, MICRO_BATCHES, place.layout.data)]


def tokens(job: Job, step: int, micro_batch: int) -> Tokens:
    draws = torch.Generator().manual_seed(1000 * step + micro_batch)
    return Tokens(torch.randint(DECODERS[job.objective].vocab_size, (MICRO_BATCH, 13), generator=draws))


def lesson(job: Job, step: int, micro_batch: int) -> Lesson:
    draws = torch.Generator().manual_seed(1000 * step + micro_batch)
    grids = Grids(
        torch.randint(SHAPE.text_vocabulary, (MICRO_BATCH, SHAPE.text_length), generator=draws),
        (torch.randint(SHAPE.visual_vocabulary, (MICRO_BATCH, 16), generator=draws),),
        (torch.randint(SHAPE.visual_vocabulary, (MICRO_BATCH, 16, 4), generator=draws),),
    )
    fine_rows = 1 if step % job.details_every == 0 else 0
    return draw_lesson(job.objective, grids, SHAPE, MASKING, draws, fine_rows)  # pyright: ignore[reportArgumentType]


def first_gradient(value: Tensor) -> Tensor:
    return getattr(value, "first_gradient", torch.zeros_like(value))


@contextmanager
def left_out(place: str | None) -> Iterator[None]:
    """The ranks tell each other nothing at `place`."""
    real, real_reduction = collectives.all_reduce, deepspeed.DeepSpeedEngine.allreduce_gradients

    def mutated(value: Tensor, group: collectives.Group, at: str, *, largest: bool = False) -> Tensor:
        return value.detach().clone() if at == place else real(value, group, at, largest=largest)

    for module in (collectives, guard, tensor):
        setattr(module, "all_reduce", mutated)  # noqa: B010 - a module's attribute, which its type does not know
    if place == "data-parallel gradients":
        deepspeed.DeepSpeedEngine.allreduce_gradients = lambda *arguments, **named: None
    try:
        yield
    finally:
        for module in (collectives, guard, tensor):
            setattr(module, "all_reduce", real)  # noqa: B010
        deepspeed.DeepSpeedEngine.allreduce_gradients = real_reduction

"""How many images a rank computes at once, where the settings leave it open, and what it takes at least."""

from components.train.settings import OptimizationSettings
from model.objectives.settings import Objective
from model.transformer.config import GeneratorConfig

_PER_STAGE = 4
"""Micro-batches of a step for each stage of a pipeline, at least: with m of them for p stages, stages wait for (p - 1) /
(m + p - 1) of the time (Huang et al. 2019, "GPipe"); the reference has 16 for 4."""


def micro_batch_size(settings: OptimizationSettings, shape: GeneratorConfig, objective: Objective, ranks: int) -> int:
    """Images that each of so many data-parallel ranks computes at once."""
    size = settings.parallel.micro_batch_size
    assert size != "auto", "it is found before the ranks start"
    return size or micro_batch_sizes(settings, shape, objective, settings.global_batch_size // ranks)[-1]


def micro_batch_sizes(
    settings: OptimizationSettings, shape: GeneratorConfig, objective: Objective, share: int
) -> list[int]:
    """The sizes that are worth trying, ascending: divisors of a rank's `share` of a step's images, small enough to keep a
    pipeline's stages busy where any are. Empty where the share itself is too small."""
    stages = settings.parallel.pipeline
    least = least_micro_batch(settings, shape, objective)
    sizes = [size for size in range(least, share + 1) if share % size == 0]
    busy = [size for size in sizes if stages == 1 or share // size >= _PER_STAGE * stages]
    return busy or sizes[:1]


def least_micro_batch(settings: OptimizationSettings, shape: GeneratorConfig, objective: Objective) -> int:
    """Plans are normalised over the images that are computed at once, as long as they are learned: one is none."""
    learns_plans = shape.plan_tokens > 0 and objective == "parallel" and settings.plan_frozen_from > 0
    return 2 if learns_plans else 1

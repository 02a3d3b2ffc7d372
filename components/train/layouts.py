"""Which layouts a training's settings allow."""

from common.errors import UsageError
from components.train.settings import Objective, OptimizationSettings
from components.train.sizes import least_micro_batch
from model.parallel.layout import Divisible, ParallelLayout, choose_layout
from model.transformer.config import GeneratorConfig


def layout_of(settings: OptimizationSettings, shape: GeneratorConfig, ranks: int, *, where: str) -> ParallelLayout:
    """How so many ranks share a training that was checked; `where` names the settings. Raises `UsageError` for what does
    not divide."""
    sizes, parallel = Divisible.of(shape, settings.global_batch_size), settings.parallel
    return choose_layout(parallel.tensor, parallel.pipeline, ranks, sizes, where=where)


def check_layout(
    section: str, settings: OptimizationSettings, shape: GeneratorConfig, objective: Objective, nodes: int = 1
) -> int:
    """How many images of a step are each rank's. Raises `UsageError` where the ranks cannot share the model or a batch so;
    the layouts that it names instead keep every rule."""
    sizes, parallel, where = Divisible.of(shape, settings.global_batch_size), settings.parallel, f"{section}.parallel"

    def goes(layout: ParallelLayout) -> bool:
        return _refusal(section, settings, shape, objective, layout) is None

    layout = choose_layout(
        parallel.tensor, parallel.pipeline, settings.processes * nodes, sizes, where=where, goes=goes
    )
    refusal = _refusal(section, settings, shape, objective, layout)
    if refusal is not None:
        problem, fix = refusal
        raise UsageError(problem, where=where, fix=fix)
    return settings.global_batch_size // layout.data


def _refusal(
    section: str, settings: OptimizationSettings, shape: GeneratorConfig, objective: Objective, layout: ParallelLayout
) -> tuple[str, str] | None:
    """Why the other settings do not allow a layout that divides, and what to do; None where they do."""
    zero, micro_batch = settings.parallel.zero, settings.parallel.micro_batch_size
    if settings.optimizer != "adamw" and (layout.tensor > 1 or layout.pipeline > 1 or zero):
        return "Muon needs whole matrices and one stage, without ZeRO", f"set {section}.optimizer=adamw"
    if zero > 1 and layout.pipeline > 1:
        return f"ZeRO-{zero} does not go with pipeline parallel", "set zero=1"
    share = settings.global_batch_size // layout.data
    if isinstance(micro_batch, int) and share % micro_batch:
        return (
            f"{share} images of each rank are not a multiple of micro_batch_size {micro_batch}",
            "change one of them",
        )
    least = least_micro_batch(settings, shape, objective)
    if share < least or micro_batch == 1 < least:
        return (
            "one image at once: plans are normalised over several",
            f"set {section}.global_batch_size, or micro_batch_size, so that a rank computes {least} images at once",
        )
    return None

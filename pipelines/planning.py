"""`emuflow plan`: what a training takes, before anybody pays for it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from common.errors import UsageError
from common.files import atomic_path

if TYPE_CHECKING:
    from model.parallel.plan.engines import TrainingEngine
    from model.parallel.plan.hardware import Gpu
    from model.parallel.plan.layout import Layout
    from model.parallel.plan.search import Plan
    from model.parallel.plan.shape import ModelShape

KnownT = TypeVar("KnownT")
_ZERO: dict[str, Literal[0, 1, 2, 3]] = {"z0": 0, "z1": 1, "z2": 2, "z3": 3}
_SCALES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


def choose(
    preset: str, sequence: int, gpu: str, price: float | None, engine: str
) -> "tuple[ModelShape, Gpu, TrainingEngine]":
    """The shape of a preset, a GPU and an engine, by name. Raises `UsageError` for a name that there is not."""
    from model.parallel.plan.engines import ENGINES
    from model.parallel.plan.hardware import GPUS
    from model.parallel.plan.shape import ModelShape
    from model.transformer.presets import PRESETS

    for name, known, where in ((preset, PRESETS, "--preset"), (gpu, GPUS, "--gpu"), (engine, ENGINES, "--engine")):
        if name not in known:
            raise UsageError(f"there is no '{name}'", where=where, fix=f"choose one of {', '.join(known)}")
    card = GPUS[gpu] if price is None else replace(GPUS[gpu], usd_per_hour=price)
    return ModelShape.of(preset, PRESETS[preset], sequence), card, ENGINES[engine]


def parse_layout(text: str, gpus: int, batch: int, engine: "TrainingEngine") -> "Layout":
    """`TENSOR,PIPELINE,DATA` or, with what each does, `…,MICRO_BATCH[,CHUNKS][,none|selective|full][,z0|z1|z2|z3]`; without
    the last ones nothing is computed again, and ZeRO-1.

    Raises `UsageError` for anything else, and where it is of another number of GPUs.
    """
    from model.parallel.plan.engines import Recompute
    from model.parallel.plan.layout import Layout

    parts = text.lower().split(",")
    recomputes: dict[str, Recompute] = {each: each for each in get_args(Recompute)}
    try:
        tensor, pipeline, data, *more = [int(part) for part in parts if part not in recomputes and part not in _ZERO]
        micro_batch, virtual = [*more, *(1, 1)[len(more) :]]
        recompute, zero = _only(parts, recomputes, "none"), _only(parts, _ZERO, "z1")
    except ValueError:
        raise UsageError(f"'{text}' is no layout", where="--layout", fix="write TENSOR,PIPELINE,DATA") from None
    if min(tensor, pipeline, data, micro_batch, virtual) < 1 or tensor * pipeline * data != gpus:
        raise UsageError(
            f"{tensor} x {pipeline} x {data} is not {gpus} GPUs", where="--layout", fix="correct --gpus or it"
        )
    if batch % (data * micro_batch):
        raise UsageError(
            f"{batch} sequences a step do not divide by {data} x {micro_batch}", where="--layout", fix="change --batch"
        )
    return Layout(
        tensor,
        pipeline,
        data,
        micro_batch,
        batch // (data * micro_batch),
        virtual,
        recompute,
        zero,
        sequence_parallel=engine.sequence_parallel,
        engine=engine,
    )


def _only(parts: Sequence[str], known: Mapping[str, KnownT], default: str) -> KnownT:
    """What the one part says that is `known`. Raises `ValueError` where there are several."""
    [name] = [part for part in parts if part in known] or [default]
    return known[name]


def show(console: Console, plans: "Sequence[Plan]", given: "Plan | None", tokens: float) -> None:
    """The best layouts in a table, the given one among them, and what the first takes, part by part."""
    first = plans[0]
    shape, card = first.shape, first.gpu
    console.print(
        f"{shape.name}: {shape.parameters / 1e9:.1f}B parameters, sequences of {shape.sequence}, {first.layout.batch} a step, "
        f"on {first.layout.gpus} {card.name.upper()} for {tokens:.3g} tokens, by the engine {first.layout.engine.name}",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(
        "",
        "TxPxD",
        "batch",
        "again",
        "step",
        "MFU",
        "idle",
        "GiB",
        "days",
        "cost",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    rows = [
        *((str(number), plan) for number, plan in enumerate(plans, start=1)),
        *((("given", given),) if given else ()),
    ]
    for name, plan in rows:
        layout = plan.layout
        chunks = f"({layout.virtual})" if layout.virtual > 1 else ""
        table.add_row(
            name,
            f"{layout.tensor}x{layout.pipeline}{chunks}x{layout.data} Z{layout.zero}",
            f"{layout.micro_batch}x{layout.accumulation}",
            layout.recompute,
            f"{plan.time.total:.2f} s",
            f"{plan.mfu:.0%}",
            f"{plan.bubble_share:.0%}",
            f"{plan.memory.total:.0f}{'' if plan.fits else ' !'}",
            f"{plan.days(tokens):,.1f}",
            f"${plan.cost_usd(tokens) / 1e6:,.2f}M",
        )
    console.print(Group(table, *(_parts(name, plan) for name, plan in (rows[0], *rows[len(plans) :]))))
    notes = (
        "TxPxD: tensor, pipeline (chunks) and data parallel, Z: ZeRO stage. batch: micro-batch x accumulation. again: what "
        f"is recomputed. GiB of {card.memory_gib:.0f} on one GPU, as counted; ! is more than three quarters. Cost at "
        f"${card.usd_per_hour:g} a GPU hour, an assumption (--price). {_assumed(first.layout.engine)}"
    )
    console.print(Text(notes, "dim"))


def describe(plan: "Plan", tokens: float) -> dict[str, Any]:
    """For programs."""
    layout = plan.layout
    return {
        "layout": asdict(layout) | {"engine": layout.engine.name, "gpus": layout.gpus, "batch": layout.batch},
        "memory_gib": asdict(plan.memory) | {"total": plan.memory.total},
        "fits": plan.fits,
        "step_s": asdict(plan.time) | {"total": plan.time.total},
        "mfu": plan.mfu,
        "bubble_share": plan.bubble_share,
        "tokens_per_s": plan.tokens_per_s,
        "days": plan.days(tokens),
        "cost_usd": plan.cost_usd(tokens),
    }


def draw_scaling(
    file: Path, shape: "ModelShape", gpu: "Gpu", batch: int, engine: "TrainingEngine"
) -> list[tuple[int, float, float]]:
    """Plot tokens a second and MFU of the best layout on 8 to 4,096 GPUs at the same batch; returns the points
    (GPUs, tokens a second, MFU). Sizes that the model does not fit, or the batch does not divide by, are left out."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    from model.parallel.plan.search import best_plans

    points = []
    for gpus in _SCALES:
        try:
            best = best_plans(shape, gpu, gpus, batch, count=1, engine=engine)[0]
        except UsageError:
            continue
        points.append((gpus, best.tokens_per_s, best.mfu))
    if not points:
        raise UsageError(f"{shape.name} fits none of {_SCALES[0]} to {_SCALES[-1]} GPUs", where="--plot")
    sizes, speeds, shares = zip(*points, strict=True)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "legend.frameon": False}):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(sizes, speeds, "o-", color="#2563eb", label="tokens a second")
        axes.plot(
            sizes, [speeds[0] * size / sizes[0] for size in sizes], "--", color="#94a3b8", lw=1, label="in proportion"
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel(
            f"{gpu.name.upper()} GPUs, {batch} sequences of {shape.sequence} tokens a step, engine {engine.name}"
        )
        axes.set_ylabel("tokens a second")
        right = axes.twinx()
        right.plot(sizes, [100 * share for share in shares], "s:", color="#d97706", ms=4, label="MFU, %")
        right.set_ylim(0, 70)
        right.set_ylabel("MFU, %")
        lines = [*axes.get_lines(), *right.get_lines()]
        axes.legend(lines, [str(line.get_label()) for line in lines], loc="lower right", fontsize=8)
        with atomic_path(file) as temporary:
            figure.savefig(temporary, format=file.suffix.lstrip(".") or "png", dpi=160)
    return points


def _assumed(engine: "TrainingEngine") -> str:
    held = f"weights of {engine.weight_bytes:g} bytes"
    if engine.cast_bytes:
        held += f" with copies of {engine.cast_bytes:g} while they are used"
    features = [
        name
        for has, name in ((engine.interleaved, "interleaved stages"), (engine.sequence_parallel, "sequence parallel"))
        if has
    ]
    return (
        f"The engine {engine.name}: {held}, gradients of {engine.gradient_bytes:g}; "
        f"{' and '.join(features) or 'neither interleaved stages nor sequence parallel'} (--engine)."
    )


def _parts(name: str, plan: "Plan") -> Table:
    """Where the time, the memory and the transfers of one layout go."""
    table = Table(
        "time",
        "",
        "memory",
        "",
        "sent by a GPU in a step",
        "",
        title=f"Layout {name}",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    time = {key: value for key, value in asdict(plan.time).items() if key != "link_bytes"}
    times = [(key.replace("_", " "), f"{value:.3f} s") for key, value in time.items()]
    held = [(key, f"{value:.1f} GiB") for key, value in asdict(plan.memory).items()]
    sent = [(key, f"{value / 1e9:,.1f} GB") for key, value in plan.time.link_bytes.items()]
    for cells in zip_longest(times, held, sent, fillvalue=("", "")):
        table.add_row(*chain.from_iterable(cells))
    return table

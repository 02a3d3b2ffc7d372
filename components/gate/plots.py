"""The report's pictures, as SVG text that a page can hold inline."""

import io
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    CONTROL,
    FULL_PRECISION,
    LatencyBlock,
    Measurements,
    Times,
    by_round,
    rounds,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

TITLES = {
    CANDIDATE: "candidate (INT8)",
    FULL_PRECISION: "candidate (full precision)",
    CHAMPION: "champion (INT8)",
    CONTROL: "champion, loaded again",
}
_COLOURS = {CANDIDATE: "#2563eb", FULL_PRECISION: "#94a3b8", CHAMPION: "#d97706", CONTROL: "#a16207"}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#94a3b8",
    "axes.labelcolor": "#475569",
    "xtick.color": "#475569",
    "ytick.color": "#475569",
    "axes.grid": True,
    "grid.color": "#e2e8f0",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
}


def latency_distributions(measured: Measurements, times: Times, what: str, bound_ms: float | None) -> str | None:
    """Cumulative distribution of each arm's times in the rounds, with the bound on the 95th percentile. `None` without
    samples."""
    samples = {name: [v for r in rounds(arm.latency_blocks, times) for v in r] for name, arm in measured.arms.items()}
    return _distributions(samples, f"milliseconds from request to {what}", bound_ms)


def open_load(measured: Measurements) -> str | None:
    """The same for requests at random times."""
    loads = {name: arm.open_load for name, arm in measured.arms.items() if arm.open_load}
    if not loads:
        return None
    rate = next(iter(loads.values())).offered_per_s
    label = f"milliseconds from when a request was due to the final image, {rate:.0f} requests/s"
    return _distributions({name: load.image_ms for name, load in loads.items()}, label, None)


def _distributions(given: dict[str, list[Any]], label_of_axis: str, bound_ms: float | None) -> str | None:
    samples = {name: _finite(values) for name, values in given.items()}
    samples = {name: values for name, values in samples.items() if len(values)}
    if not samples:
        return None

    def draw(axes: "Axes") -> None:
        for name, values in samples.items():
            p95 = float(np.quantile(values, 0.95))
            label = f"{TITLES[name]}: p50 {np.median(values):.1f}, p95 {p95:.1f} ms"
            axes.plot(values, np.arange(1, len(values) + 1) / len(values), color=_COLOURS[name], lw=1.8, label=label)
            axes.plot([p95], [0.95], "o", color=_COLOURS[name], ms=4)
        axes.axhline(0.95, color="#cbd5e1", lw=0.8)
        slowest = max(float(np.quantile(values, 0.995)) for values in samples.values())
        fastest = min(float(values[0]) for values in samples.values())
        near = bound_ms is not None and bound_ms < 1.6 * slowest  # a bound far away would squeeze the curves
        right = max(slowest, bound_ms) if bound_ms is not None and near else slowest
        if bound_ms is not None and near:
            axes.axvline(bound_ms, color="#dc2626", lw=1, ls="--", label=f"bound on p95: {bound_ms:g} ms")
        axes.set_xlim(fastest - 0.05 * (right - fastest), right * 1.04)
        axes.set_xlabel(label_of_axis)
        axes.set_ylabel("share of requests")
        _legend(axes)

    return _svg(draw, 6.4, 3.2)


def paired_ratios(measured: Measurements, bound: float) -> str | None:
    """Each round's median latency of the candidate over the other arms' in the same round, and of the champion's second
    load over its first, which shows how far equal arms differ here."""
    blocks = {name: arm.latency_blocks for name, arm in measured.arms.items()}
    ours, control = blocks.pop(CANDIDATE, []), blocks.pop(CONTROL, [])
    ratios = {name: _ratios(ours, theirs) for name, theirs in blocks.items()}
    ratios = {name: found for name, found in ratios.items() if found}
    if not ratios:
        return None

    def draw(axes: "Axes") -> None:
        for name, found in ratios.items():
            style = {"color": _COLOURS[name], "ms": 3.5, "lw": 1, "label": f"over {TITLES[name]}"}
            axes.plot([number + 1 for number in found], list(found.values()), "o-", **style)
        axes.axhline(1, color="#64748b", lw=0.8)
        if CHAMPION in ratios:
            equal = _ratios(control, blocks[CHAMPION])
            line = {"color": _COLOURS[CONTROL], "lw": 1, "ls": ":", "label": "champion, second load over first"}
            axes.plot([number + 1 for number in equal], list(equal.values()), **line)
            axes.axhline(bound, color="#dc2626", lw=1, ls="--", label=f"bound over the champion: {bound:g}")
        axes.set_xlabel("round (each arm in it twice, in mirrored order)")
        axes.set_ylabel("median latency, candidate / other")
        _legend(axes)

    return _svg(draw, 6.4, 3.2)


def _ratios(ours: Sequence[LatencyBlock], theirs: Sequence[LatencyBlock]) -> dict[int, float]:
    """Medians' ratios in the rounds that both were timed in, by the round's number."""
    above, below = by_round(ours), by_round(theirs)
    return {number: _median(above[number]) / _median(below[number]) for number in above if number in below}


def accuracy_by_attribute(measured: Measurements) -> str | None:
    """What the judge found right, by attribute and arm, with the 95% interval of a share (Wilson)."""
    arms = {name: arm for name, arm in measured.arms.items() if arm.correctness and arm.correctness.digit}
    if not arms:
        return None
    attributes = ("digit", "colour", "position", "correct")

    def draw(axes: "Axes") -> None:
        width = 0.8 / len(arms)
        lowest = 1.0
        for index, (name, arm) in enumerate(arms.items()):
            shares = [np.mean(getattr(arm.correctness, attribute)) for attribute in attributes]
            intervals = [_wilson(float(share), len(measured.captions)) for share in shares]
            below = [max(0.0, share - low) for share, (low, _) in zip(shares, intervals, strict=True)]
            above = [max(0.0, high - share) for share, (_, high) in zip(shares, intervals, strict=True)]
            places = np.arange(len(attributes)) + (index - (len(arms) - 1) / 2) * width
            style = {"ecolor": "#334155", "elinewidth": 0.8, "capsize": 2}
            axes.bar(
                places,
                shares,
                width * 0.9,
                color=_COLOURS[name],
                label=TITLES[name],
                yerr=[below, above],
                error_kw=style,
            )
            lowest = min(lowest, *(low for low, _ in intervals))
        axes.set_xticks(range(len(attributes)), ["digit", "colour", "position", "all three"])
        axes.set_ylim(max(0.0, math.floor((lowest - 0.03) * 10) / 10), 1.01)
        axes.set_ylabel("share of captions right")
        _legend(axes)

    return _svg(draw, 6.4, 3.2)


def warm_up(measured: Measurements) -> str | None:
    """The median latency of each window of requests before anything was measured."""
    windows = {name: arm.warmup.window_p50_ms for name, arm in measured.arms.items() if arm.warmup}
    windows = {name: medians for name, medians in windows.items() if medians}
    if not windows:
        return None

    def draw(axes: "Axes") -> None:
        for name, medians in windows.items():
            axes.plot(range(1, len(medians) + 1), medians, "o-", color=_COLOURS[name], ms=4, lw=1.2, label=TITLES[name])
        axes.set_xticks(range(1, max(map(len, windows.values())) + 1))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("window of warm-up requests")
        axes.set_ylabel("median latency, ms")
        _legend(axes)

    return _svg(draw, 6.4, 3.2)


def machine(measured: Measurements) -> str | None:
    """How busy the machine was at the end of each block, and who had it, in the order of the blocks."""
    blocks = [block for block in _in_order(measured) if block.machine]
    states = [block.machine for block in blocks if block.machine]
    if not states:
        return None

    def draw(axes: "Axes") -> None:
        places = range(1, len(states) + 1)
        load = axes.plot(places, [state.load for state in states], color="#475569", lw=1.2, label="load (one minute)")
        axes.set_ylim(bottom=0)
        axes.set_ylabel("running processes")
        axes.set_xlabel("block")
        others = [100 * block.processors.others if block.processors else math.nan for block in blocks]
        taken = axes.twinx()
        had = taken.fill_between(places, others, color="#dc2626", alpha=0.3, lw=0, label="processor time others had, %")
        handles = [*load, had]
        disturbed = [block.disturbed for block in blocks]
        if any(disturbed):
            style = {"color": "#64748b", "alpha": 0.15, "lw": 0, "label": "disturbed rounds, which do not count"}
            handles.append(taken.fill_between(places, 0, 100, where=disturbed, step="mid", **style))
        taken.set_ylim(0, 100)
        taken.grid(visible=False)
        taken.set_ylabel("others, %")
        _legend(axes, handles)

    return _svg(draw, 6.4, 3.2)


def _in_order(measured: Measurements) -> list[LatencyBlock]:
    return sorted((b for arm in measured.arms.values() for b in arm.latency_blocks), key=lambda block: block.round)


def _legend(axes: "Axes", handles: Sequence["Artist"] | None = None) -> None:
    """Above the plot, so that it never hides a point."""
    shown = handles or axes.get_legend_handles_labels()[0]
    axes.legend(handles=shown, fontsize=7.5, loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)


def _finite(samples: list[Any]) -> np.ndarray:
    values = np.array([value for value in samples if value is not None], dtype=float)
    return np.sort(values[np.isfinite(values)])


def _median(samples: list[float | None]) -> float:
    return float(np.nanmedian(np.array(samples, dtype=float)))


def _wilson(share: float, count: int) -> tuple[float, float]:
    """The Wilson score interval at 95% (Wilson 1927), fit for shares near 1."""
    z = 1.96
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def _svg(draw: "Callable[[Axes], None]", width: float, height: float) -> str:
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure.add_subplot())
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :]

"""What `benchmarks.modality_gate` found, to look at: what skipping costs in accuracy, and what it saves in time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.files import atomic_path

Curve = Sequence[tuple[float, float]]


@dataclass
class Shown:
    """Three curves' families: (skipped share, accuracy), (skipped share, ms) and (context tokens, ms)."""

    accuracy: dict[str, Curve] = field(default_factory=dict)
    time_by_share: dict[str, Curve] = field(default_factory=dict)
    time_by_length: dict[str, Curve] = field(default_factory=dict)


def plot(shown: Shown, file: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(16, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    _draw(left, shown.accuracy, "share of the attention to earlier blocks that is skipped", "accuracy (judge)")
    left.set_ylim(-0.03, 1.03)
    left.legend(fontsize=8, loc="lower left")
    _draw(middle, shown.time_by_share, "share of the attention to earlier blocks that is skipped", "attention, ms")
    middle.set_ylim(bottom=0)
    middle.legend(fontsize=8)
    _draw(right, shown.time_by_length, "tokens of the context", "attention, ms")
    right.set_ylim(bottom=0)
    right.legend(fontsize=8)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _draw(axes, curves: Mapping[str, Curve], across: str, up: str) -> None:
    for number, (name, curve) in enumerate(curves.items()):
        points = sorted(curve)
        style = "o-" if len(points) > 1 else "*"
        size = 4 if len(points) > 1 else 16
        axes.plot([x for x, _ in points], [y for _, y in points], style, ms=size, color=f"C{number}", label=name)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)

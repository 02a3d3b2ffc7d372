"""What `benchmarks.decode` found, to look at: time against accuracy, and what each decoder draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.files import atomic_path


@dataclass(frozen=True)
class Shown:
    """One decoder in the picture."""

    median_ms: float
    accuracy: float
    variety: float
    examples: np.ndarray
    """uint8 [captions, height, width, 3]."""


def plot(rows: Mapping[str, Shown], captions: Sequence[str], file: Path) -> None:
    """Write the picture as PNG."""
    from matplotlib.figure import Figure

    names = list(rows)
    figure = Figure(figsize=(16, 1.05 * len(names) + 1.5), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.25))[0]
    axes = left.subplots()
    times = [row.median_ms for row in rows.values()]
    middle = (min(times) * max(times)) ** 0.5
    for number, name in enumerate(names):
        row = rows[name]
        axes.scatter(row.median_ms, row.accuracy, s=40 + 400 * row.variety, alpha=0.6, color=f"C{number % 10}")
        side, shift = ("right", -4) if row.median_ms > middle else ("left", 4)
        place = {"xytext": (shift, 6), "textcoords": "offset points", "ha": side}
        axes.annotate(name, (row.median_ms, row.accuracy), fontsize=7, **place)
    axes.set_xscale("log")
    axes.set_xlabel("median time of an image, ms (one thread)")
    axes.set_ylabel("accuracy (judge)")
    axes.set_title("the larger the mark, the more two images of a caption differ", fontsize=9)
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    grid = right.subplots(len(names), len(captions), squeeze=False)
    for line, name in zip(grid, names, strict=True):
        for cell, image in zip(line, rows[name].examples, strict=True):
            cell.imshow(image)
            cell.set_axis_off()
        line[0].set_title(f"{name}, {rows[name].median_ms:.1f} ms", fontsize=7, loc="left", pad=2)
    with atomic_path(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)

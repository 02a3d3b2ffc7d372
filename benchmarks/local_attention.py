"""How does the time of a sketch's pass grow with its grid, where cells see all others, and where they see their own window?

    python -m benchmarks.local_attention [--json FILE]

One pass over the sketch on onnxruntime and one thread, random weights of the quickstart's shape, batch 1. The three ways
of a grid are timed in turn. Where cells have a window, a mask over all pairs hides what is outside, and blocks skip it.
"""

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import onnxruntime
import torch
from rich.console import Console

from benchmarks.report import Announcer, Check, Report, Row, command_line
from model.quantization.export_onnx import export_graphs
from model.quantization.inference import with_plain_tables
from model.tokenizers.settings import VisualTokenizerConfig
from model.tokenizers.visual import VisualTokenizer
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator
from model.transformer.patterns import window_bias
from serving.package.runtime.engine import load_graph

GRIDS = (24, 32, 48)
"""Rows of the sketch, and columns: images of 192, 256 and 384 pixels."""
_WINDOW = 2
_ROUNDS = 20
_ALL, _MASK, _BLOCKS = "sees all", "window, masked", "window, by blocks"


def generators(side: int) -> dict[str, Generator]:
    """The same weights, three ways."""
    torch.manual_seed(0)
    shape = GeneratorConfig(coarse_grid=(side, side), sketch_window=_WINDOW)
    blocks = Generator(shape).eval()
    dense = Generator(shape.model_copy(update={"sketch_window": None})).eval()
    masked = Generator(shape).eval()
    for other in (dense, masked):
        other.load_state_dict(blocks.state_dict())
    masked.sketch_window.local = None
    masked.sketch_window.bias = window_bias(shape.coarse_grid, _WINDOW, shape.text_length)
    return {_ALL: dense, _MASK: masked, _BLOCKS: blocks}


def times_ms(side: int, rounds: int) -> dict[str, list[float]]:
    """Of each way, in turn; the first round is not counted. Raises `ValueError` where blocks give other numbers than the
    mask."""
    graphs: dict[str, onnxruntime.InferenceSession] = {}
    ways = generators(side)
    with TemporaryDirectory() as folder:
        for number, (name, generator) in enumerate(ways.items()):
            exported = Path(folder) / str(number)
            visual = VisualTokenizer(VisualTokenizerConfig(width=8, depth=1)).eval()
            export_graphs(with_plain_tables(generator), visual, exported, names=("coarse",))
            graphs[name] = load_graph(exported / "coarse.onnx", 1)
    config = ways[_BLOCKS].config
    with torch.inference_mode():
        past = ways[_BLOCKS].prefill(torch.zeros(1, config.text_length, dtype=torch.long)).past.numpy()
    feeds = {
        "past": past,
        "coarse_ids": np.full((1, side * side), config.visual_vocabulary),
        "plan_ids": np.zeros((1, config.plan_tokens), dtype=np.int64),
    }
    (masked,), (by_blocks,) = (graphs[name].run(["logits"], feeds) for name in (_MASK, _BLOCKS))
    if not np.allclose(masked, by_blocks, atol=1e-3):
        raise ValueError("blocks do not give the numbers of the mask")
    measured: dict[str, list[float]] = {name: [] for name in graphs}
    for number in range(rounds + 1):
        for name, graph in graphs.items():
            start = perf_counter()
            graph.run(["logits"], feeds)
            if number:
                measured[name].append(1000 * (perf_counter() - start))
    return measured


def run(console: Console, file: Path | None, rounds: int = _ROUNDS, grids: tuple[int, ...] = GRIDS) -> bool:
    """Measure and print; whether the bound holds."""
    report, announce = Report("local-attention", command_line(), columns=("cells",)), Announcer(console)
    for side in grids:
        announce(f"a sketch of {side}x{side}")
        measured = times_ms(side, rounds)
        for name, times in measured.items():
            median, p95 = float(np.median(times)), float(np.quantile(times, 0.95))
            report.rows.append(Row(f"{side}x{side}, {name}", median, p95, more={"cells": side * side}))
        ratios = np.array(measured[_ALL]) / np.array(measured[_BLOCKS])
        report.checks.append(Check(f"speedup_{side}x{side}", float(np.median(ratios)), 1, 2, rounds))
    return report.finish(console, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time a sketch's pass with and without local attention.")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    return 0 if run(Console(), chosen.json) else 1


if __name__ == "__main__":
    sys.exit(main())

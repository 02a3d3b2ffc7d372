"""How does the time of an image grow with its size, drawn progressively and token by token?

    python -m benchmarks.scaling [--json FILE]

The quickstart's shape on larger grids, with random weights: times alone, no quality. Each size is drawn progressively,
with a sketch whose cells see all others and with one whose cells see a window, by next tokens with a cache and the
details in one pass, and on one scale, all tokens of the image in a single pass; the window and next tokens also from a
sketch of 8x8 cells whatever the size, in as many stages of details as that takes. On onnxruntime, fp32, one thread, batch
1, in turn. One scale is timed call by call and in one graph, as the progressive ones are, and the faster of the two is
compared.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.decoders import Decoder, engine, first_and_warm_ms
from benchmarks.report import Announcer, Check, Report, Row, command_line
from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import DecodingOptions
from model.transformer.config import GeneratorConfig
from model.transformer.model import Generator

SIDES = (8, 16, 24, 32)
"""Rows and columns of the sketch; an image has eight pixels for each."""
_WINDOW = 2
_ROUNDS = 20
_ALL, _LOCAL, _NEXT = "progressive", "progressive, window", "next token + details, KV cache"
_ONE_SCALE, _ONE_SCALE_GRAPH = "one scale, 1 parallel step", "one scale, 1 parallel step, one graph"
_SMALL_SKETCH, _NEXT_SMALL_SKETCH = "progressive, sketch of 8x8", "next token + details, KV cache, sketch of 8x8"


def open_decoders(stack: ExitStack, side: int) -> dict[str, Decoder]:
    """The ways to draw an image of this size, until `stack` closes; from a sketch of 8x8 where doubling that leads there, and
    is another way."""
    tokenizers = checkpoints.load_tokenizers()
    shape = checkpoints.load("progressive").config.model_copy(
        update={"coarse_grid": (side, side), "sketch_window": None}
    )

    def opened(config: GeneratorConfig, *, next_token: bool):
        torch.manual_seed(0)
        generator = Generator(config).eval()
        return stack.enter_context(engine(generator, tokenizers, next_token=next_token, threads=1))

    local = shape.model_copy(update={"sketch_window": _WINDOW})
    whole = shape.model_copy(update={"coarse_grid": (2 * side, 2 * side), "fine_layers": 0, "plan_tokens": 0})
    one_scale = opened(whole, next_token=False)
    decoders = {
        _ALL: opened(shape, next_token=False).parallel(_ALL, DecodingOptions()),
        _LOCAL: opened(local, next_token=False).parallel(_LOCAL, DecodingOptions()),
        _NEXT: opened(shape, next_token=True).autoregressive(_NEXT, NextTokenOptions(), cache=True),
        _ONE_SCALE: one_scale.parallel(_ONE_SCALE, DecodingOptions(), at_once=False),
        _ONE_SCALE_GRAPH: one_scale.parallel(_ONE_SCALE_GRAPH, DecodingOptions()),
    }
    if side > SIDES[0] and side in (SIDES[0] << stage for stage in range(1, 8)):
        small = local.model_copy(
            update={"coarse_grid": (SIDES[0], SIDES[0]), "detail_stages": (side // SIDES[0]).bit_length()}
        )
        drawn = opened(small, next_token=False).parallel(_SMALL_SKETCH, DecodingOptions())
        one_by_one = opened(small, next_token=True).autoregressive(_NEXT_SMALL_SKETCH, NextTokenOptions(), cache=True)
        decoders |= {_SMALL_SKETCH: drawn, _NEXT_SMALL_SKETCH: one_by_one}
    return decoders


def times_ms(side: int, rounds: int, report: Report) -> dict[str, list[float]]:
    """Of each way, in turn, each after some images of its own; `report` is told who else had the processors."""
    with ExitStack() as stack:
        decoders = open_decoders(stack, side)
        measured: dict[str, list[float]] = {name: [] for name in decoders}
        prompt = np.random.default_rng(0).integers(0, 300, (1, GeneratorConfig().text_length))
        with report.timed():
            for number in range(rounds):
                for name, decoder in decoders.items():
                    _, each_ms = first_and_warm_ms(decoder, prompt, number)
                    measured[name].append(float(np.median(each_ms)))
    return measured


def run(console: Console, file: Path | None, rounds: int = _ROUNDS, sides: tuple[int, ...] = SIDES) -> bool:
    """Measure and print; whether the bounds hold: the next-token decoder falls behind further with every size, where its
    sketch grows with the image. From a sketch of 8x8 it does not; that is reported."""
    report, announce = Report("scaling", command_line(), columns=("pixels",)), Announcer(console)
    before = 1.0
    for side in sides:
        announce(f"images of {8 * side}x{8 * side} pixels")
        measured = times_ms(side, rounds, report)
        for name, times in measured.items():
            median, p95 = float(np.median(times)), float(np.quantile(times, 0.95))
            report.rows.append(Row(f"{8 * side}x{8 * side}, {name}", median, p95, more={"pixels": (8 * side) ** 2}))
        behind = float(np.median(np.array(measured[_NEXT]) / np.array(measured[_LOCAL])))
        report.checks.append(Check(f"speedup_vs_next_token_{8 * side}", behind, before, before, rounds))
        window = float(np.median(np.array(measured[_ALL]) / np.array(measured[_LOCAL])))
        report.checks.append(Check(f"window_speedup_{8 * side}", window, None, 1.5, rounds))
        fastest = min((measured[_ONE_SCALE], measured[_ONE_SCALE_GRAPH]), key=lambda times: float(np.median(times)))
        one_scale = float(np.median(np.array(fastest) / np.array(measured[_LOCAL])))
        report.checks.append(Check(f"speedup_vs_one_scale_step_{8 * side}", one_scale, None, 4, rounds))
        if _SMALL_SKETCH in measured:
            stages = np.array(measured[_LOCAL]) / np.array(measured[_SMALL_SKETCH])
            report.checks.append(Check(f"stages_speedup_{8 * side}", float(np.median(stages)), None, 1.5, rounds))
            small = np.array(measured[_NEXT_SMALL_SKETCH]) / np.array(measured[_SMALL_SKETCH])
            report.checks.append(
                Check(f"speedup_vs_next_token_{8 * side}_small_sketch", float(np.median(small)), None, 1, rounds)
            )
        before = behind
    return report.finish(console, file)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time images of several sizes.")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(arguments)
    return 0 if run(Console(), chosen.json) else 1


if __name__ == "__main__":
    sys.exit(main())

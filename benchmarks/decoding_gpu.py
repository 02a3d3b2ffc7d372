"""Images a second and latency of a generator of 1.2B or 8B weights on one GPU, in bf16.

    python -m benchmarks.decoding_gpu --json FILE [--preset 1b|8b] [--size 1024] [--sketch 16] [--batches 1 8] [--rounds 20]

Progressive decoding, previews off and on, against next tokens with a KV cache and the details in one pass each, eager and
compiled (on a GPU with CUDA graphs), and with the blocks' products in INT8. `--sketch 64` makes that a raster of 4,096 next
tokens; fewer rounds do for it. The weights are random: times do not depend on them, and no quality is measured. Timed is the
way from a prompt's tokens to pixels in the machine's memory, all rows in turn in every round.

Beside a row's time stand the shares of the GPU's matrix rate (dense bf16, also for INT8) and of its memory's bandwidth that
the least work reaches; where both are small, the time goes into starting kernels. A row's memory is that of its weights and
what its first calls reserved.

`--preset nano` is for trying it out: it needs no GPU, and tells nothing about one.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.decoding_gpu_rows import Timed, rows
from benchmarks.decoding_gpu_shape import SHAPES, Memory, generator_config, memory, visual_config
from benchmarks.report import Announcer, Report, command_line
from common.errors import PlatformError
from model.parallel.plan.hardware import GPUS, Gpu

_COPIES = 3
"""Of the weights that lie on the GPU at once: eager, compiled, and one that is made into INT8."""
_GRAPHS = 64
"""Of one function that torch compiles: stages, sizes of a batch and kinds of weights. It stops at eight by default."""


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured, and of what model."""

    preset: str = "1b"
    size: int = 1024
    """Pixels of an image's side."""
    sketch: int = 16
    """Cells of the sketch's side."""
    batches: tuple[int, ...] = (1, 8)
    warmups: int = 3
    """Calls before the first round: in the first one a row compiles, in the second it records its CUDA graphs."""
    rounds: int = 20
    compiled: bool = True
    """Whether there are compiled rows beside the eager ones."""


def run(console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file`. Nothing is promised: which GPU it is decides the numbers.

    Raises `PlatformError` where the preset needs a GPU, or more memory of it, than there is, and `UsageError` for a size
    that the sketch does not double to.
    """
    amount = amount or Amount()
    config = generator_config(amount.preset, amount.size, amount.sketch)
    needed = memory(config, max(amount.batches))
    _require_gpu(amount.preset, needed)
    columns = ("images_per_s", "times_slower", "first_preview_ms", "rate_share", "bandwidth_share", "memory_gib")
    report, announce, too_large = Report("decoding-gpu", command_line(), columns=columns), Announcer(console), []
    timed: list[Timed] = []
    with _room_for_graphs():
        for row in rows(config, visual_config(amount.preset), amount.batches, compile_too=amount.compiled):
            announce(f"{row.name}, batch {row.batch}: the first calls")
            try:
                row.warm_up(amount.warmups)
                timed.append(row)
            except torch.OutOfMemoryError:
                too_large.append(f"{row.name}, batch {row.batch}")
        announce(f"timing {amount.rounds} rounds")
        for number in range(amount.rounds):
            for row in timed if number % 2 else reversed(timed):
                row.take()
    gpu, reference = _gpu(), f"progressive, {'compiled' if amount.compiled else 'eager'}"
    references = {row.batch: row for row in timed if row.name == reference}
    report.rows += [row.row(gpu, references.get(row.batch)) for row in timed]
    report.notes |= {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "amount": asdict(amount),
        "shape": config.model_dump(mode="json"),
        "grids": config.grids,
        "weight_bytes": needed.weights,
        "cache_bytes": needed.cache,
        "does_not_fit": too_large,
        "quality": "not measured: the weights are random",
    }
    return report.finish(console, file)


def _require_gpu(preset: str, needed: Memory) -> None:
    if preset == "nano":
        return
    if not torch.cuda.is_available():
        raise PlatformError(
            f"no GPU is at hand for the {needed.weights / 2**30:.1f} GiB of weights of the preset {preset}",
            fix="run it where torch.cuda.is_available(), with the CUDA torch",
        )
    total, least = torch.cuda.get_device_properties(0).total_memory, _COPIES * needed.weights + needed.cache
    if total < least:
        raise PlatformError(
            f"the preset {preset} needs {least / 2**30:.0f} GiB of a GPU's memory, this one has {total / 2**30:.0f}",
            fix="take a smaller preset, or a GPU with more memory",
        )


def _gpu() -> Gpu | None:
    """The data sheet of the GPU at hand; None without one, and for one that is not known."""
    name = torch.cuda.get_device_name().lower() if torch.cuda.is_available() else ""
    return next((gpu for key, gpu in GPUS.items() if key in name), None)


@contextmanager
def _room_for_graphs() -> Iterator[None]:
    limit, torch._dynamo.config.recompile_limit = torch._dynamo.config.recompile_limit, _GRAPHS
    try:
        yield
    finally:
        torch._dynamo.config.recompile_limit = limit


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Images a second and latency on one GPU.")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--preset", choices=SHAPES, default=Amount.preset)
    parser.add_argument("--size", type=int, default=Amount.size)
    parser.add_argument("--sketch", type=int, default=Amount.sketch)
    parser.add_argument("--batches", type=int, nargs="+", default=Amount.batches)
    parser.add_argument("--rounds", type=int, default=Amount.rounds)
    chosen = parser.parse_args(arguments)
    amount = Amount(
        preset=chosen.preset,
        size=chosen.size,
        sketch=chosen.sketch,
        batches=tuple(chosen.batches),
        rounds=chosen.rounds,
    )
    return 0 if run(Console(), chosen.json, amount) else 1


if __name__ == "__main__":
    sys.exit(main())

"""`emuflow bench`: each command runs one file of `benchmarks`, and ends with exit code 1 where a bound is missed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from common.errors import UsageError
from common.home import Home
from pipelines.cli_options import DEFAULT_HOME, HomeOption, console

bench_app = typer.Typer(no_args_is_help=True, help="Measure what is promised; exit code 1 where a bound is missed.")
BenchJsonOption = Annotated[Path | None, typer.Option("--json", help="The file to write the result to.")]


@contextmanager
def _in_a_checkout() -> Iterator[None]:
    """Imports of benchmarks. Raises `UsageError` where only the packages are installed."""
    try:
        yield
    except ModuleNotFoundError:
        raise UsageError(
            "the benchmarks are no part of this installation", where="emuflow bench", fix="run it in a checkout"
        ) from None


@bench_app.command(name="decode")
def bench_decode(
    json_file: BenchJsonOption = None,
    home: HomeOption = DEFAULT_HOME,
    rounds: Annotated[int, typer.Option(min=20, help="Timed images of each decoder.")] = 25,
    seeds: Annotated[int, typer.Option(min=5, help="Images of each held-out caption.")] = 12,
) -> None:
    """Progressive against autoregressive decoding: time, accuracy, variety."""
    with _in_a_checkout():
        from benchmarks import decode

    amount = decode.Amount(rounds=rounds, seeds=seeds)
    if not decode.run(Home(home).cache, console, json_file, amount):
        sys.exit(1)


@bench_app.command(name="modality-gate")
def bench_modality_gate(
    json_file: BenchJsonOption = None,
    home: HomeOption = DEFAULT_HOME,
    rounds: Annotated[int, typer.Option(min=20, help="Timed requests of each row.")] = 40,
    stories: Annotated[int, typer.Option(min=116, help="Stories of 26 requests each: 3,000 and more.")] = 120,
) -> None:
    """What the dynamic modality gate skips of a long context: share, accuracy, time."""
    with _in_a_checkout():
        from benchmarks import modality_gate

    amount = modality_gate.Amount(rounds=rounds, stories=stories)
    if not modality_gate.run(Home(home).cache, console, json_file, amount):
        sys.exit(1)


@bench_app.command(name="serving")
def bench_serving(
    json_file: BenchJsonOption = None,
    home: HomeOption = DEFAULT_HOME,
    rounds: Annotated[int, typer.Option(min=5, help="Rounds; each measures everything once.")] = 7,
) -> None:
    """The served model: time to the first preview and to the image, images a second, what Triton costs."""
    with _in_a_checkout():
        from benchmarks import serving

    if not serving.run(Home(home).cache, console, json_file, serving.Amount(rounds=rounds)):
        sys.exit(1)


@bench_app.command(name="soak")
def bench_soak(
    json_file: BenchJsonOption = None,
    minutes: Annotated[
        float, typer.Option(min=1, help="At four fifths of the capacity, after a minute's warm-up.")
    ] = 30,
) -> None:
    """A busy server for half an hour: lost requests, memory, latency by the minute."""
    with _in_a_checkout():
        from benchmarks import soak

    if not soak.run(console, json_file, soak.Amount(minutes=minutes)):
        sys.exit(1)


@bench_app.command(name="int8")
def bench_int8(
    json_file: BenchJsonOption = None,
    home: HomeOption = DEFAULT_HOME,
    rounds: Annotated[int, typer.Option(min=20, help="Rounds; each times every decoder.")] = 40,
    seeds: Annotated[int, typer.Option(min=5, help="Images of each of 746 held-out captions.")] = 12,
) -> None:
    """INT8 against fp32: time, bytes, accuracy."""
    with _in_a_checkout():
        from benchmarks import int8

    if not int8.run(Home(home).cache, console, json_file, int8.Amount(rounds=rounds, seeds=seeds)):
        sys.exit(1)


@bench_app.command(name="gate")
def bench_gate(
    json_file: BenchJsonOption = None,
    home: HomeOption = DEFAULT_HOME,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer gates: ten minutes instead of an hour.")] = False,
) -> None:
    """The gate's own errors: false alarms, slow-downs and losses that it must catch, a busy machine."""
    with _in_a_checkout():
        from benchmarks import gate

    if not gate.run(Home(home).cache, console, json_file, gate.QUICK if quick else gate.Amount()):
        sys.exit(1)


@bench_app.command(name="experiments")
def bench_experiments(
    json_file: BenchJsonOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer tests of fewer users: under a minute.")] = False,
) -> None:
    """A/B tests that are looked at a hundred times: false stops, power, what they cost."""
    with _in_a_checkout():
        from benchmarks import experiments

    if not experiments.run(console, json_file, experiments.QUICK if quick else None):
        sys.exit(1)


@bench_app.command(name="release")
def bench_release(
    json_file: BenchJsonOption = None,
    quick: Annotated[bool, typer.Option("--quick", help="3 rollbacks and 200 attempts for 10 and 1,000.")] = False,
) -> None:
    """How soon a rollback serves, and whether of many promoters exactly one wins."""
    with _in_a_checkout():
        from benchmarks import release

    if not release.run(console, json_file, release.QUICK if quick else None):
        sys.exit(1)


@bench_app.command(name="training")
def bench_training(
    json_file: BenchJsonOption = None,
    rounds: Annotated[int, typer.Option(min=3, help="Blocks of steps of ours and of the Trainer each.")] = 6,
) -> None:
    """A training step beside Hugging Face's Trainer, on two processes, and with data, curves and states."""
    with _in_a_checkout():
        from benchmarks import training

    if not training.run(console, json_file, training.Amount(rounds=rounds)):
        sys.exit(1)

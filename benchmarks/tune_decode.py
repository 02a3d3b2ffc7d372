"""Accuracy and variety over temperatures: `python -m benchmarks.tune_decode`.

What `benchmarks.decode` measures must not choose its own settings: the captions are not those that are held out. Only to
give a baseline our accuracy, `--held-out` asks the held-out ones under seeds that the benchmark does not draw.
"""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from benchmarks import checkpoints
from benchmarks.decode import Amount, Bench
from benchmarks.decode_rows import ENGINES, open_engines
from benchmarks.decoders import Decoder, Engine
from benchmarks.image_quality import Questions
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge
from model.decoding.autoregressive import NextTokenOptions
from model.decoding.loop import DecodingOptions

_FIRST_SEED = 1_000_000
"""Beyond what `benchmarks.decode` draws."""


def decoders(
    name: str, engine: Engine, steps: list[int], temperatures: list[float], plan_temperatures: list[float]
) -> list[Decoder]:
    """Every setting of an engine that is worth looking at."""
    if checkpoints.RECIPES[ENGINES[name][0]].objective == "next_token":
        return [
            engine.autoregressive(f"{name}, {t}", NextTokenOptions(temperature=t), cache=True) for t in temperatures
        ]
    if engine.generator.plan is None:
        plan_temperatures = [0.0]
    return [
        engine.parallel(
            f"{name}, {count} steps, {t}" + (f", plan {plan}" if engine.generator.plan is not None else ""),
            DecodingOptions(coarse_steps=count, temperature=t, plan_temperature=plan),
        )
        for count in steps
        for t in temperatures
        for plan in plan_temperatures
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=list(checkpoints.RECIPES), choices=ENGINES, help="engines")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where the judge is kept")
    parser.add_argument("--captions", type=int, default=250)
    parser.add_argument("--held-out", action="store_true", help="held-out captions, under other seeds")
    parser.add_argument("--seeds", type=int, default=6, help="images of each caption")
    parser.add_argument("--steps", type=int, nargs="+", default=[1], help="parallel passes over the sketch")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.1 * tenth for tenth in range(10)])
    parser.add_argument("--plan-temperatures", type=float, nargs="+", default=[0.8, 1.0])
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args(arguments)
    judge = trained_judge(JudgeSettings(), chosen.cache).folder / GRAPH_NAME
    with ExitStack() as stack:
        engines = open_engines(stack, chosen.only, threads=chosen.threads)
        text_length = next(iter(engines.values())).generator.config.text_length
        questions = Questions.of(
            checkpoints.load_tokenizers().text, text_length, chosen.captions, held_out=chosen.held_out
        )
        amount = Amount(seeds=chosen.seeds, frechet_images=chosen.seeds * chosen.captions, first_seed=_FIRST_SEED)
        bench = Bench(questions, judge, amount)
        for name, engine in engines.items():
            for decoder in decoders(name, engine, chosen.steps, chosen.temperatures, chosen.plan_temperatures):
                bench.measure(decoder.name, decoder)
                row = bench.rows[decoder.name]
                print(
                    f"{decoder.name:40} accuracy {row.accuracy:.4f} variety {row.variety:.3f} frechet {row.frechet:.3f}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How much attention to a long context does the dynamic modality gate skip, at what quality, and what time does it save?

    emuflow bench modality-gate --json FILE

Stories of 26 scenes (2,080 tokens), held-out captions painted with test digits, are asked for each of their scenes again.
The gated generator and its ungated twin were trained alike; masks that do not look (fixed, random) are given at least the
attention that the gate uses, in either of the two models. One more fixed mask, which is no contender since it opens several
times as much, shows what cutting heads off would do by itself. Quality is measured first, then all is timed in turn, one
request each a round, on one thread. Context keys, and the gate's view of them, are there before a request comes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks import checkpoints, modality_gate_sweep, story_checkpoints
from benchmarks import story_policies as policies
from benchmarks.modality_gate_checks import ALL_OPEN, FIXED, GATED, HEADS_CUT, RANDOM, TWIN, Measured, checks
from benchmarks.modality_gate_plot import plot
from benchmarks.modality_gate_timing import Request, Timed, Times, fastest, interleave, median
from benchmarks.report import Announcer, Report, Row, command_line
from benchmarks.stories import heldout_stories
from benchmarks.story_quality import Choose, Painter, Stories, correct, mean_interval
from benchmarks.story_training import SCENES
from components.judge.reading import GRAPH_NAME
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge
from model.transformer.story import StoryGenerator


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How much is measured."""

    stories: int = 120
    """Of 26 requests each."""
    rounds: int = 40
    """Timed requests of each row."""
    draws: int = 3
    """Of each random mask."""
    sweep_stories: int = 24


def run(cache: Path, console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure, print, and write `file` with a picture beside it; whether every bound holds. `cache` keeps the judge between
    calls."""
    amount = amount or Amount()
    report = Report("modality-gate", command_line(), columns=("skipped_share", "request_ms"))
    announce = Announcer(console)
    announce("the judge")
    judge = trained_judge(JudgeSettings(), cache).folder / GRAPH_NAME
    announce(f"{amount.stories} stories of {SCENES} scenes")
    bench = Bench(judge, amount)
    for name, (model, draws) in bench.contenders().items():
        announce(f"quality: {name}")
        bench.measure(name, model, draws)
    announce(f"timing {amount.rounds} rounds")
    with report.timed():
        dense, times = bench.time()
    bench.fill(report, dense, times)
    if file is not None:
        announce("the curves of the picture")
        shown = modality_gate_sweep.sweep(bench.stories, bench.models, bench.accuracy_of, amount.sweep_stories)
        report.notes["sweep"] = vars(shown)
        plot(shown, file.with_suffix(".png"))
    return report.finish(console, file)


class Bench:
    """The measurements of one run."""

    def __init__(self, judge: Path, amount: Amount):
        self.judge, self.amount = judge, amount
        bundle = checkpoints.load_tokenizers()
        self.models = {name: story_checkpoints.load_story(name) for name in ("gated", "ungated")}
        length = self.models["gated"].config.text_length
        self.stories = Stories(heldout_stories(bundle, length, amount.stories, SCENES), SCENES)
        self.painter = Painter(story_checkpoints.load_details(), bundle.visual, story_checkpoints.blank_prompt(bundle))
        self.rows: dict[str, Measured] = {}
        self._last: tuple[np.ndarray, float, list[list[Tensor]], float] | None = None

    def contenders(self) -> Mapping[str, tuple[StoryGenerator, list[Choose]]]:
        """Every row: whose weights, and which gates (several draws of the random ones)."""
        gated, twin = self.models["gated"], self.models["ungated"]
        answers = self.stories.answers(gated, lambda story: None)
        own = [policies.stacked(gates, SCENES) for gates in answers.gates]
        shape, stories = own[0].shape, len(self.stories)
        every = policies.same_for_all(policies.latest_scenes(shape, SCENES), SCENES)
        draws, tokens = range(self.amount.draws), _tokens(gated)
        return {
            TWIN: (twin, [lambda story: None]),
            GATED: (gated, [lambda story: None]),
            ALL_OPEN: (gated, [every]),
            HEADS_CUT: (gated, [policies.same_for_all(policies.wherever_the_gate_ever_looks(own), SCENES)]),
            FIXED[0]: (gated, [policies.same_for_all(policies.latest_by_head(own), SCENES)]),
            FIXED[1]: (gated, [policies.same_for_all(policies.latest_in_busiest_head(own, tokens), SCENES)]),
            FIXED[2]: (twin, [policies.same_for_all(policies.latest_scenes(shape, 1), SCENES)]),
            RANDOM[0]: (gated, [policies.random_choice(own, seed) for seed in draws]),
            RANDOM[1]: (twin, [policies.random_scenes(shape, stories, 1, seed) for seed in draws]),
        }

    def measure(self, name: str, model: StoryGenerator, draws: list[Choose]) -> None:
        found = [self.answer(model, choose, self.stories) for choose in draws]
        self.rows[name] = Measured(
            model,
            np.mean([each.correct for each in found], 0),
            float(np.mean([each.skipped for each in found])),
            found[-1].gates,
            float(np.mean([each.sketch_cells for each in found])),
        )

    def answer(self, model: StoryGenerator, choose: Choose, stories: Stories) -> Measured:
        """Answers of one draw, read by the judge."""
        answers = stories.answers(model, choose)
        right = correct(self.judge, self.painter.paint(answers.sketches), stories.tokens.expected)
        tokens = _tokens(model)
        opened = [policies.stacked(gates, stories.scenes) for gates in answers.gates]
        skipped = float(np.mean([policies.skipped_share(story, tokens).mean() for story in opened]))
        cells = float((answers.sketches == stories.tokens.sketches).float().mean())
        return Measured(model, right.reshape(len(stories), -1), skipped, answers.gates, cells)

    def accuracy_of(self, model: StoryGenerator, choose: Choose, stories: Stories) -> tuple[float, float]:
        """(skipped share, accuracy), for the picture."""
        found = self.answer(model, choose, stories)
        return found.skipped, found.accuracy

    def time(self) -> tuple[Times, Times]:
        """The attention in every dense way, and every row's attention and whole request, each round another request."""
        contexts = {name: self._contexts(model) for name, model in self.models.items()}

        def prepare(number: int) -> dict[str, Timed]:
            story = number % len(self.stories)
            row = story * SCENES + number % SCENES
            text = self.stories.tokens.requests[row][None, None]
            requests = {name: Request.of(model, contexts[name][story], text) for name, model in self.models.items()}
            work = {f"dense: {name}": timed for name, timed in requests["ungated"].dense().items()}
            for name, measured in self.rows.items():
                request = requests["gated" if measured.model is self.models["gated"] else "ungated"]
                gates = None if name in (TWIN, GATED) else _of_request(measured.gates[story], row % SCENES)
                if name != TWIN:
                    work[f"attention: {name}"] = request.gated() if gates is None else request.masked(gates)
                work[f"request: {name}"] = request.whole(gates)
            return work

        times = interleave(self.amount.rounds, prepare)
        dense = {name.removeprefix("dense: "): each for name, each in times.items() if name.startswith("dense: ")}
        times[f"attention: {TWIN}"] = dense[fastest(dense)]
        return dense, times

    def _contexts(self, model: StoryGenerator) -> list:
        with torch.inference_mode():
            count = min(len(self.stories), self.amount.rounds + 1)
            return [self.stories.context(model, story) for story in range(count)]

    def fill(self, report: Report, dense: Times, times: Times) -> None:
        """Rows and checks of what was measured."""
        for name, measured in self.rows.items():
            interval = mean_interval(measured.correct.mean(1))
            request = times[f"request: {name}"]
            more = {
                "skipped_share": measured.skipped,
                "request_ms": median(request),
                "request_p95_ms": float(np.quantile(request, 0.95)),
                "low": interval.low,
                "high": interval.high,
                "sketch_cells_right": measured.sketch_cells,
                "draws": self.amount.draws if name in RANDOM else 1,
            }
            report.rows.append(self._row(name, times[f"attention: {name}"], measured, more))
        for name, each in dense.items():
            report.rows.append(self._row(f"dense: {name}", each, None, {}))
        report.checks = checks(self.rows, dense, times)
        report.notes |= {
            "context_tokens": sum(self.models["gated"].key_sizes(SCENES)),
            "fastest_dense": fastest(dense),
            "dense_in_whole_requests": "SDPA, concatenated",
            "real_scenes_through_the_tokenizer": self.ceiling(),
            "checkpoints": {name: story_checkpoints.describe(name) for name in story_checkpoints.ABOUT},
            "gate_open_share_by_layer_and_head": self.open_by_head(),
        }

    def _row(self, name: str, times: list[float], measured: Measured | None, more: dict) -> Row:
        accuracy, n = (None, 0) if measured is None else (measured.accuracy, measured.correct.size)
        return Row(name, median(times), float(np.quantile(times, 0.95)), accuracy, n, more)

    def ceiling(self) -> float:
        """Accuracy of the true sketches, painted like the answers: no generator can do better."""
        tokens = self.stories.tokens
        return float(correct(self.judge, self.painter.paint(tokens.sketches), tokens.expected).mean())

    def open_by_head(self) -> list[list[float]]:
        opened = np.stack([policies.stacked(gates, SCENES) for gates in self.rows[GATED].gates])
        return opened.mean((0, 3, 4, 5, 6)).round(5).tolist()


def _tokens(model: StoryGenerator) -> tuple[int, int]:
    """Of a caption and an image."""
    return model.config.text_length, model.config.cells


def _of_request(gates: list[Tensor], request: int) -> list[Tensor]:
    """One request's gates among those of all requests to its story: [1, heads, query_blocks, k] of each layer."""
    return [layer.unflatten(2, (SCENES, -1))[:, :, request] for layer in gates]

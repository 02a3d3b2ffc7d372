"""How often is the gate wrong? `emuflow bench gate --json FILE`

Live gates: each starts a Triton server of its own, loads a candidate, its full-precision form and a champion (twice),
measures them as the pipeline does, and is judged by the pipeline's gate. The candidates are the champion's own model (A/A), one
that works 15% or 5% longer for every image, and three with damaged weights; and again the first two with processes that
take all cores from the middle of the timing on. They come in a shuffled order, so that no kind has the quiet hour to
itself, and each asks with seeds of its own. Beside them, the gates resampled by whole launches (`gate_resampling.py`).

In an A/A gate both arms draw the very same images, as a pipeline's would. So that the quality check's own error is seen,
too, the champion's accuracy in one gate is compared with its accuracy in another one, under other seeds.

Latency is judged twice: by the gate's default bounds, and by strict ones (p50 within 2%), since a slow-down of 5% keeps
the default ones and is meant to.
"""

import math
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from rich.console import Console

from benchmarks import checkpoints
from benchmarks.gate_checks import DAMAGED, HOG, HOG_SLOW, SAME, SLIGHTLY_SLOW, SLOW, Gate, all_checks
from benchmarks.gate_packages import Candidate, Damage, PackageMaker
from benchmarks.gate_resampling import alike_in_quality, resampled
from benchmarks.report import Announcer, Report, Row, command_line
from common.errors import GateError
from common.files import read_json
from common.progress import PROGRESS_VARIABLE
from components.benchmark.benchmark import benchmark
from components.benchmark.measurements import CANDIDATE, CHAMPION, Measurements, read_measurements, rounds
from components.benchmark.settings import BenchmarkSettings
from components.gate.gate import judge
from components.gate.settings import GateSettings
from components.gate.verdict import Result
from components.ingest.ingest import ingest
from components.judge.settings import JudgeSettings
from components.judge.training import trained_judge

DAMAGES = (Damage(0, 0.225), Damage(1, 0.2445), Damage(2, 0.225))
"""Three models that each lose about three points of accuracy in INT8; what they lose, each gate measures for itself."""
POLICY = GateSettings.model_validate({"champion": {"accuracy_margin": 0.01}})
STRICT = GateSettings.model_validate({"champion": {"accuracy_margin": 0.01, "max_p50_ratio": 1.02}})
_SLOW_BY = 0.15
_SEED = 0
_SEEDS_APART = 100_000


@dataclass(frozen=True, kw_only=True)
class Amount:
    """How many live gates of each kind, and how many resampled ones."""

    same: int = 20
    each: int = 10
    damages: int = len(DAMAGES)
    resampled: int = 1000
    resampled_power: int = 200
    measuring: BenchmarkSettings = field(default_factory=lambda: BenchmarkSettings(examples=0, bounds=POLICY.deciding))
    seeds: Mapping[str, int] = field(default_factory=lambda: {SAME: 4, DAMAGED: 5})
    """Per caption, of the kinds that tell of the accuracy: a small loss takes 3,000 images and more. Others ask as a
    pipeline does by default."""

    def measuring_of(self, kind: str) -> BenchmarkSettings:
        seeds = self.seeds.get(kind, self.measuring.seeds_per_caption)
        return self.measuring.model_copy(update={"seeds_per_caption": seeds})

    def kinds(self) -> list[str]:
        """Every gate's kind, shuffled; the first is an A/A gate, which tells how long an image takes."""
        hogs = [HOG] * (self.each // 2) + [HOG_SLOW] * (self.each - self.each // 2)
        kinds = [SAME] * (self.same - 1) + [SLOW, SLIGHTLY_SLOW, DAMAGED] * self.each + hogs
        random.Random(_SEED).shuffle(kinds)
        return [SAME, *kinds]


QUICK = Amount(same=3, each=1, damages=1, resampled=200, resampled_power=50)


@dataclass
class Gates:
    """The gates of each kind."""

    by_kind: dict[str, list[Gate]] = field(default_factory=dict)

    def add(self, kind: str, measured: Measurements) -> Gate:
        gate = Gate(measured, judge(POLICY, measured, ""), judge(STRICT, measured, ""))
        self.by_kind.setdefault(kind, []).append(gate)
        return gate

    def measured(self, kind: str) -> list[Measurements]:
        return [gate.measured for gate in self.by_kind.get(kind, [])]


class Lab:
    """Everything that a live gate needs, in a folder."""

    def __init__(self, work: Path, cache: Path, damages: int):
        from pipelines.settings import load as load_settings

        self._work = work
        data = load_settings("quickstart").data
        evaluation = ingest(data, work / "source", work / "samples", work / "evaluation_set").evaluation
        self._judge = trained_judge(JudgeSettings(), cache).folder
        self.maker = PackageMaker(work, evaluation.digest)
        self.maker.export(DAMAGES[:damages])
        self.champion = self.maker.model("champion")
        self._same = self.maker.model("candidate")
        self.candidates: dict[str, list[Candidate]] = {
            SAME: [self._same],
            HOG: [self._same],
            DAMAGED: [self.maker.model("candidate", damage) for damage in DAMAGES[:damages]],
        }

    def slow_down(self, image_ms: float) -> None:
        """Make the slower candidates, by shares of the time that an image takes over gRPC.

        Raises `GateError` where nobody knows how long that is: work for no time would be no slow-down.
        """
        if not math.isfinite(image_ms):
            raise GateError("the first gate timed no image", fix="see its reasons above, and run the benchmark again")
        slow = self.maker.slower(self._same, _SLOW_BY * image_ms)
        self.candidates |= {
            SLOW: [slow],
            HOG_SLOW: [slow],
            SLIGHTLY_SLOW: [self.maker.slower(self._same, 0.05 * image_ms)],
        }

    def measure(self, kind: str, measuring: BenchmarkSettings, number: int, middle_s: float) -> Measurements:
        """One live measurement, the `number`-th of all, which no other one shares its questions' seeds with; a hog begins
        when it has timed for `middle_s` seconds."""
        candidates = self.candidates[kind]
        with (
            TemporaryDirectory(dir=self._work) as folder,
            _hog(middle_s if kind in (HOG, HOG_SLOW) else None, Path(folder) / "progress.json"),
        ):
            measurements = Path(folder) / "measurements"
            benchmark(
                asked_anew(measuring, number),
                candidates[number % len(candidates)].write(Path(folder) / "exported"),
                self.maker.store,
                self.maker.key_folder,
                self.champion.int8,
                self._work / "evaluation_set",
                checkpoints.STORE / "tokenizers",
                self._judge,
                measurements,
            )
            return read_measurements(measurements)


def asked_anew(measuring: BenchmarkSettings, number: int) -> BenchmarkSettings:
    """With questions whose seeds no gate of another number has."""
    return measuring.model_copy(update={"seed": measuring.seed + number * _SEEDS_APART})


@contextmanager
def _hog(after_s: float | None, progress: Path) -> Iterator[None]:
    """Processes that take every core, from `after_s` seconds after the timing began until the block ends; None: nobody does.
    When that is, the benchmark's own `progress` file tells."""
    if after_s is None:
        yield
        return
    started: list[subprocess.Popen[bytes]] = []
    ended = threading.Event()

    def begin() -> None:
        while not _is_timing(progress):
            if ended.wait(0.05):
                return
        if not ended.wait(after_s):
            started.extend(
                subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)
            )

    thread = threading.Thread(target=begin)
    os.environ[PROGRESS_VARIABLE] = str(progress)
    thread.start()
    try:
        yield
    finally:
        del os.environ[PROGRESS_VARIABLE]
        ended.set()
        thread.join()
        for process in started:
            process.kill()
            process.wait()


def _is_timing(progress: Path) -> bool:
    return progress.is_file() and read_json(progress)["message"] == "timing"


def _timed_s(measured: Measurements, least: int) -> float:
    """How long the first `least` rounds took: of all arms' requests together, of which one ran at a time."""
    blocks = [block for arm in measured.arms.values() for block in arm.latency_blocks if block.round < least]
    return sum(value for block in blocks for value in (*block.samples_ms, *block.preview_ms) if value) / 1000


def corrected(image_ms: float, ratio: float) -> float:
    """The time of an image of which 15% more work slows an answer by 15%, where that share of `image_ms` made an answer take
    `ratio` times as long: the first gate's image may have met another moment of the machine, and work displaces caches, too.
    A trial that tells nothing changes nothing."""
    found = ratio - 1
    return image_ms * _SLOW_BY / found if _SLOW_BY / 2 < found < _SLOW_BY * 2 else image_ms


def run(cache: Path, console: Console, file: Path | None, amount: Amount | None = None) -> bool:
    """Measure and print; whether every bound holds."""
    amount = amount or Amount()
    report = Report("gate", command_line(), columns=("verdicts",))
    announce, gates = Announcer(console), Gates()
    with TemporaryDirectory(prefix="emuflow-gates-") as work:
        announce("data, judge and packages")
        lab, middle_s = Lab(Path(work), cache, amount.damages), 0.0
        kinds = amount.kinds()
        for number, kind in enumerate(kinds, start=1):
            gate = gates.add(kind, lab.measure(kind, amount.measuring_of(kind), number, middle_s))
            if number == 1:
                middle_s = _timed_s(gate.measured, amount.measuring.latency.min_rounds) / 2
                announce("how much slower the slower candidates are: a gate that is not counted")
                image_ms = _p50_ms(gate.measured, CANDIDATE)
                lab.slow_down(image_ms)
                trial = lab.measure(SLOW, amount.measuring_of(SLOW), 0, middle_s)
                lab.slow_down(corrected(image_ms, _p50_ms(trial, CANDIDATE) / _p50_ms(trial, CHAMPION)))
            announce(
                f"gate {number} of {len(kinds)}, {kind}: {gate.verdict.result.value} ({gate.measured.seconds:.0f} s)"
            )
    announce("resampling")
    counts = {SAME: amount.resampled, SLOW: amount.resampled_power, DAMAGED: amount.resampled_power}
    drawn = {kind: resampled(gates.measured(kind), POLICY, count) for kind, count in counts.items()}
    alike = alike_in_quality([measured for kind in gates.by_kind for measured in gates.measured(kind)], POLICY)
    report.rows += [_row(kind, of_kind) for kind, of_kind in gates.by_kind.items()]
    report.checks += all_checks(gates.by_kind, drawn, alike)
    report.notes["resampled"] = {kind: _by_name(results) for kind, results in drawn.items()}
    report.notes["accuracy_of_the_champion_twice"] = _by_name(alike)
    report.notes["policy"] = {"gate": POLICY.model_dump(), "strict": STRICT.model_dump()["champion"]}
    return report.finish(console, file)


def _by_name(results: Counter[Result]) -> dict[str, int]:
    return {result.value: count for result, count in results.items()}


def _row(kind: str, gates: list[Gate]) -> Row:
    """What was measured of a kind: medians over its gates, without those that could not measure it."""
    measured = [gate.measured for gate in gates]
    verdicts = [gate.verdict.result.value for gate in gates]
    ratios = [_p50_ms(each, CANDIDATE) / _p50_ms(each, CHAMPION) for each in measured]
    losses = [_accuracy(each, CHAMPION) - _accuracy(each, CANDIDATE) for each in measured]
    more = {
        "verdicts": ", ".join(f"{verdicts.count(name)} {name}" for name in sorted(set(verdicts))),
        "strict_verdicts": [gate.strict.result.value for gate in gates],
        "p50_ratio": _median(ratios),
        "accuracy_lost": _median(losses),
        "seconds": _median([each.seconds for each in measured]),
        "seeds_per_caption": [each.seeds_per_caption for each in measured],
        "reasons": [gate.verdict.reasons for gate in gates],
        "machine": [each.machine.model_dump() for each in measured],
    }
    p50_ms, p95_ms = (_median([_latency_ms(each, CANDIDATE, q) for each in measured]) for q in (0.5, 0.95))
    accuracy = _median([_accuracy(each, CANDIDATE) for each in measured])
    n = _median([len(each.captions) * each.seeds_per_caption for each in measured])
    return Row(kind, p50_ms, p95_ms, accuracy, int(n or 0), more)


def _median(values: Sequence[float]) -> float | None:
    """Of the numbers among them; None where there is none."""
    numbers = [value for value in values if math.isfinite(value)]
    return float(np.median(numbers)) if numbers else None


def _p50_ms(measured: Measurements, arm: str) -> float:
    return _latency_ms(measured, arm, 0.5)


def _latency_ms(measured: Measurements, arm: str, quantile: float) -> float:
    """NaN where the arm was not timed."""
    times = [value for block in rounds(measured.arms[arm].latency_blocks) for value in block if value is not None]
    return float(np.quantile(times, quantile)) if times else math.nan


def _accuracy(measured: Measurements, arm: str) -> float:
    """NaN where nobody read the arm's images."""
    correctness = measured.arms[arm].correctness
    return float(np.mean(correctness.correct)) if correctness else math.nan

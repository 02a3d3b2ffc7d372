"""Measure a candidate beside its full-precision form and the champion, on one real server."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from common.errors import GateError
from common.files import atomic_path, read_json
from components.benchmark.arms import Question
from components.benchmark.embedding import embedder
from components.benchmark.evaluation import load_evaluation
from components.benchmark.looks import Standing
from components.benchmark.machine import MachineWatch
from components.benchmark.measurements import (
    CANDIDATE,
    CHAMPION,
    FULL_PRECISION,
    Example,
    Measurements,
    write_measurements,
)
from components.benchmark.own_metrics import load_metrics
from components.benchmark.package_quality import block_bytes
from components.benchmark.quality import Readings, read_images
from components.benchmark.session import Answers, Session, report_phase, run_session
from components.benchmark.settings import BenchmarkSettings
from components.judge.reading import load_judge

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkResult:
    """The summary for the step's record; the gate reads the file."""

    status: str
    candidate_digest: str
    champion_digest: str | None
    candidate_accuracy: float | None
    candidate_p50_ms: float | None
    seconds: float


def benchmark(
    settings: BenchmarkSettings,
    exported: Path,
    package_store: Path,
    key_folder: Path,
    champion_digest: str | None,
    evaluation_set: Path,
    tokenizers: Path,
    judge_folder: Path,
    measurements: Path,
) -> BenchmarkResult:
    """Write `measurements/measurements.json`, example images and the server's log.

    A server that does not warm up, dies or answers with another package makes the measurements INVALID; that is a
    result. Raises `SignatureError` or `ServerError` where a package cannot be loaded at all, `DataError` where there
    is nothing to ask, `DigestMismatchError` where the judge is not the one that was measured.
    """
    started = time.monotonic()
    evaluation = load_evaluation(evaluation_set, settings.unjudged_captions)
    packages = _packages(exported, package_store, champion_digest)
    judge = load_judge(judge_folder) if evaluation.expected is not None else None
    metrics, seen_by = load_metrics(settings.metrics), embedder(settings.embedder, judge, tokenizers)
    readings = Readings(judge, evaluation.expected) if judge and evaluation.expected is not None else None
    passes = _passes(
        settings, evaluation.captions, settings.most_seeds_per_caption if readings else settings.seeds_per_caption
    )
    with atomic_path(measurements) as folder:
        folder.mkdir()
        watch = MachineWatch.start()
        session = run_session(settings, passes, packages, key_folder, folder, partial(_standing, settings, readings))
        machine = watch.finish()
        report_phase("reading the images")
        asked = max(1, len(next(iter(session.answers.values()), ())) // len(evaluation.captions))
        questions = list(chain.from_iterable(passes[:asked]))
        read_images(session, settings, evaluation, questions, readings, seen_by, metrics, evaluation_set)
        report_phase("done")
        if machine.steal_share is not None and machine.steal_share > settings.max_steal_share:
            session.reasons.append(f"other guests took {machine.steal_share:.0%} of the machine's CPU time")
        described = read_json(tokenizers / "tokenizers.json")
        record = Measurements(
            status="INVALID" if session.reasons else "VALID",
            reasons=session.reasons,
            arms=session.arms,
            evaluation_digest=evaluation.digest,
            quality_metric="heldout_loss" if judge is None else "judge",
            captions=evaluation.captions,
            seeds_per_caption=asked,
            safety_prompts=len(settings.safety_prompts),
            metrics=list(metrics),
            tokenizers_digest=described["digest"],
            tokenizer_ssim=described["metrics"].get("ssim"),
            block_bytes=block_bytes(packages[CANDIDATE]),
            judge=judge.report if judge else None,
            examples=_keep_examples(session, questions[: len(evaluation.captions)], settings.examples, folder),
            machine=machine,
            seconds=round(time.monotonic() - started, 1),
        )
        write_measurements(folder, record)
    _log.info("%s in %.1f s %s", record.status, record.seconds, "; ".join(record.reasons))
    return _summary(record)


def _passes(settings: BenchmarkSettings, captions: Sequence[str], count: int) -> list[list[Question]]:
    """Every caption once in each, with the next seeds."""
    firsts = (settings.seed + number * len(captions) for number in range(count))
    return [[Question(caption, seed) for seed, caption in enumerate(captions, start=first)] for first in firsts]


def _standing(settings: BenchmarkSettings, readings: Readings | None, answers: Answers) -> Standing:
    """Open where nobody can tell: every pass is asked."""
    return Standing.OPEN if readings is None or settings.bounds is None else readings.standing(settings.bounds, answers)


def _packages(exported: Path, package_store: Path, champion_digest: str | None) -> dict[str, Path]:
    """The package folder of each arm, in the order in which a round begins."""
    digests = read_json(exported / "export.json")
    packages = {CANDIDATE: package_store / digests["int8"], FULL_PRECISION: package_store / digests["fp32"]}
    if champion_digest:
        packages[CHAMPION] = package_store / champion_digest
    for name, package in packages.items():
        if not package.is_dir():
            raise GateError(f"the package of the {name} is not in the store", where=str(package), fix="export it again")
    return packages


def _keep_examples(session: Session, questions: list[Question], count: int, folder: Path) -> list[Example]:
    """Write the images of `count` captions, spread evenly over all of them, as PNG files under `folder/examples`."""
    from PIL import Image

    chosen = np.linspace(0, len(questions) - 1, min(count, len(questions))).round().astype(int).tolist()
    examples = []
    for name, answers in session.answers.items():
        for index in chosen:
            image = answers[index]
            if image is None:
                continue
            file = Path("examples") / f"{index:04d}-{name}.png"
            (folder / file).parent.mkdir(exist_ok=True)
            Image.fromarray(image).save(folder / file)
            question = questions[index]
            examples.append(Example(arm=name, caption=question.caption, seed=question.seed, file=file.as_posix()))
    return examples


def _summary(record: Measurements) -> BenchmarkResult:
    candidate = record.arms.get(CANDIDATE)
    correct = candidate.correctness.correct if candidate and candidate.correctness else []
    samples = [v for block in candidate.latency_blocks for v in block.samples_ms if v] if candidate else []
    return BenchmarkResult(
        status=record.status,
        candidate_digest=candidate.digest if candidate else "",
        champion_digest=record.champion_digest,
        candidate_accuracy=float(np.mean(correct)) if correct else None,
        candidate_p50_ms=float(np.median(samples)) if samples else None,
        seconds=record.seconds,
    )

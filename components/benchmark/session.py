"""One session on a real server: load the arms, warm them up, let them answer every caption and time them in turns."""

import shutil
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from common.errors import DigestMismatchError
from common.progress import report
from components.benchmark.arms import ArmClient, Images, Question
from components.benchmark.evaluation import Evaluation
from components.benchmark.latency import measure_latency
from components.benchmark.measurements import Arm
from components.benchmark.package_quality import evaluation_digest, heldout_loss
from components.benchmark.settings import BenchmarkSettings
from components.benchmark.throughput import answer_in_turns, answered_by_all, first_answerable
from emuflow_client import GeneratorError

if TYPE_CHECKING:
    from components.judge.reading import Judge

LOG_NAME = "triton.log"
_PHASES = ("loading", "warming up", "answering the captions", "timing", "done")


@dataclass
class Session:
    """What has been seen so far. `reasons` say why it cannot be used; empty means that it can."""

    arms: dict[str, Arm] = field(default_factory=dict)
    answers: dict[str, Images] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add(self, name: str, **changes: object) -> None:
        self.arms[name] = self.arms[name].model_copy(update=changes)


def run_session(
    settings: BenchmarkSettings,
    questions: list[Question],
    evaluation: Evaluation,
    judge: "Judge | None",
    packages: dict[str, Path],
    key_folder: Path,
    folder: Path,
) -> Session:
    """Measure `packages` (by arm) on an own server; its log goes to `folder/triton.log`.

    Raises `SignatureError` or `ServerError` where a package cannot be loaded. What goes wrong later (a server that
    dies, an answer of another package) is a reason for which the measurement is invalid.
    """
    from serving.server import TritonServer

    session = Session()
    with tempfile.TemporaryDirectory(prefix="emuflow-benchmark-") as work:
        server = TritonServer(Path(work), key_folder)
        try:
            _report("loading")
            server.start()
            for name, package in packages.items():
                server.load(package, name, expected_digest=package.name)
            with ExitStack() as stack:
                clients = [
                    ArmClient(name, package, package.name, server.grpc_endpoint, settings.request_timeout_s)
                    for name, package in packages.items()
                ]
                for client in clients:
                    stack.callback(client.close)
                    session.arms[client.name] = _arm(client)
                try:
                    _measure(session, settings, clients, questions)
                except (GeneratorError, DigestMismatchError) as error:
                    session.reasons.append(f"an arm did not answer as it must: {type(error).__name__}: {error}")
            if not server.alive:
                session.reasons.append("the server ended during the measurement")
        finally:
            server.stop()
            if server.log_file.is_file():
                shutil.copyfile(server.log_file, folder / LOG_NAME)
    _judge_answers(session, evaluation, judge)
    _report("done")
    return session


def _arm(client: ArmClient) -> Arm:
    """What is known of a package before it is asked."""
    return Arm(
        digest=client.digest,
        evaluation_digest=evaluation_digest(client.package),
        package_bytes=client.package_bytes,
        heldout=heldout_loss(client.package),
    )


def _measure(session: Session, settings: BenchmarkSettings, arms: list[ArmClient], questions: list[Question]) -> None:
    _report("warming up")
    answerable = first_answerable(arms, questions, settings.warmup.window_requests)
    if not answerable:
        session.reasons.append("no caption was answered by every arm")
        return
    for arm in arms:
        warmup = arm.warm_up(settings.warmup, answerable)
        session.add(arm.name, warmup=warmup)
        if not warmup.stable:
            moved = f"its latency still moved after {warmup.requests} requests"
            session.reasons.append(f"the {arm.name} was not warmed up: {moved}")
    if session.reasons:
        return
    _report("answering the captions")
    session.answers, chunks = answer_in_turns(arms, questions, settings.chunk_questions, settings.concurrent_clients)
    for name, each in chunks.items():
        session.add(name, throughput_chunks=each)
    _report("timing")
    for name, blocks in measure_latency(settings.latency, arms, answered_by_all(questions, session.answers)).items():
        session.add(name, latency_blocks=blocks)


def _judge_answers(session: Session, evaluation: Evaluation, judge: "Judge | None") -> None:
    """Read every image outside the timed part. A caption that was refused counts as wrong."""
    if judge is None or evaluation.expected is None:
        return
    from components.judge.reading import IMAGE_SIZE, compare, read

    blank = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    seeds = max(map(len, session.answers.values()), default=0) // len(evaluation.captions)
    expected = np.tile(evaluation.expected, (seeds, 1, 1))
    for name, answers in session.answers.items():
        images = np.stack([blank if image is None else image for image in answers])
        session.add(name, correctness=compare(read(judge.graph, images), expected))


def _report(phase: str) -> None:
    report(_PHASES.index(phase), len(_PHASES) - 1, phase)

"""One session on a real server: load the arms, warm them up, let them answer every caption and time them in turns."""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import DigestMismatchError, ServerError
from common.progress import enter_phase
from components.benchmark.arms import ArmClient, Images, Question
from components.benchmark.latency import Timing
from components.benchmark.looks import Standing
from components.benchmark.measurements import CHAMPION, CONTROL, FULL_PRECISION, Arm
from components.benchmark.open_load import measure_open_load
from components.benchmark.package_quality import evaluation_digest, heldout_loss
from components.benchmark.server_watch import ServerWatch
from components.benchmark.settings import BenchmarkSettings
from components.benchmark.throughput import Chunks, answer_in_turns, answered_by_all, first_answerable
from emuflow_client import GeneratorError

if TYPE_CHECKING:
    from serving.server import TritonServer

LOG_NAME = "triton.log"
_PHASES = (
    "loading",
    "warming up",
    "answering the captions",
    "timing",
    "answering them again",
    "timing once more",
    "open load",
    "reading the images",
    "done",
)
Answers = dict[str, Images]
"""By arm, in the order of the questions."""


@dataclass
class Session:
    """What has been seen so far. `reasons` say why it cannot be used; empty means that it can."""

    arms: dict[str, Arm] = field(default_factory=dict)
    answers: Answers = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def add(self, name: str, **changes: object) -> None:
        self.arms[name] = self.arms[name].model_copy(update=changes)


def run_session(
    settings: BenchmarkSettings,
    passes: Sequence[list[Question]],
    packages: dict[str, Path],
    key_folder: Path,
    folder: Path,
    accuracy: Callable[[Answers], Standing],
) -> Session:
    """Measure `packages` (by arm) on an own server; its log goes to `folder/triton.log`.

    Each of `passes` asks every caption once; how many of them are asked `accuracy` decides, which tells of the answers so
    far how they stand, once `seeds_per_caption` were, unless the latency has decided before.

    Raises `SignatureError` or `ServerError` where a package cannot be loaded. What goes wrong later (a server that
    dies, an answer of another package) is a reason for which the measurement is invalid.
    """
    from serving.server import TritonServer

    session = Session()
    with tempfile.TemporaryDirectory(prefix="emuflow-benchmark-") as work:
        server = TritonServer(Path(work), key_folder, stop_grace_s=1)  # every request was answered
        try:
            report_phase("loading")
            server.start()
            loaded = packages | ({CONTROL: packages[CHAMPION]} if CHAMPION in packages else {})
            _load(server, loaded)
            with ExitStack() as stack:
                watch = stack.enter_context(closing(ServerWatch(server.grpc_endpoint, server.pid)))
                clients = [
                    ArmClient(name, package, package.name, server.grpc_endpoint, settings.request_timeout_s)
                    for name, package in loaded.items()
                ]
                for client in clients:
                    stack.callback(client.close)
                    session.arms[client.name] = _arm(client)
                before = {client.name: watch.processes(client.name) for client in clients}
                try:
                    _measure(session, settings, clients, passes, watch, accuracy)
                except (GeneratorError, DigestMismatchError, ServerError) as error:
                    session.reasons.append(f"an arm did not answer as it must: {type(error).__name__}: {error}")
                session.reasons += [
                    f"a process of the {name} ended during the measurement"
                    for name, known in before.items()
                    if server.alive and watch.processes(name) != known
                ]
            if not server.alive:
                session.reasons.append("the server ended during the measurement")
        finally:
            server.stop()
            if server.log_file.is_file():
                shutil.copyfile(server.log_file, folder / LOG_NAME)
    return session


def _load(server: "TritonServer", packages: dict[str, Path]) -> None:
    """Two at a time: while one is verified and copied, another one warms up."""
    with ThreadPoolExecutor(2) as pool:
        loads = [pool.submit(server.load, path, name, expected_digest=path.name) for name, path in packages.items()]
        for load in loads:
            load.result()


def _arm(client: ArmClient) -> Arm:
    """What is known of a package before it is asked."""
    return Arm(
        digest=client.digest,
        evaluation_digest=evaluation_digest(client.package),
        package_bytes=client.package_bytes,
        heldout=heldout_loss(client.package),
    )


def _measure(
    session: Session,
    settings: BenchmarkSettings,
    arms: list[ArmClient],
    passes: Sequence[list[Question]],
    watch: ServerWatch,
    accuracy: Callable[[Answers], Standing],
) -> None:
    """The control is timed and no more: its answers are the champion's. The full precision is no rival under load."""
    asked, questions = [arm for arm in arms if arm.name != CONTROL], passes[0]
    report_phase("warming up")
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
    calm, seed = settings.neighbours, settings.seed
    report_phase("answering the captions")
    _answer(session, settings, asked, questions, watch)
    answered = answered_by_all(questions, session.answers)
    timing = Timing(settings.latency, calm, arms, answered, watch, seed, settings.bounds)
    report_phase("timing")
    timing.least()
    _keep(session, timing)
    if timing.standing() is not Standing.BROKEN:
        report_phase("answering them again")
        for number, more in enumerate(passes[1:], start=1):
            if number >= settings.seeds_per_caption and accuracy(session.answers) is not Standing.OPEN:
                break
            _answer(session, settings, asked, more, watch)
        report_phase("timing once more")
        if accuracy(session.answers) is not Standing.BROKEN:
            timing.rest()
            _keep(session, timing)
    report_phase("open load")
    compared = [arm for arm in asked if arm.name != FULL_PRECISION]
    slowest = _least({arm.name: session.arms[arm.name].throughput_chunks for arm in asked})
    for name, load in measure_open_load(settings.open_load, calm, compared, answered, slowest, watch, seed).items():
        session.add(name, open_load=load)
    for arm in arms:
        session.add(arm.name, memory_mb=watch.memory_mb(arm.name))
    for arm in asked if settings.safety_prompts else ():
        session.add(arm.name, safety_refused=[arm.refuses(prompt) for prompt in settings.safety_prompts])


def _keep(session: Session, timing: Timing) -> None:
    for name, blocks in timing.blocks.items():
        session.add(name, latency_blocks=list(blocks))


def _answer(
    session: Session, settings: BenchmarkSettings, arms: list[ArmClient], questions: list[Question], watch: ServerWatch
) -> None:
    """Every arm answers the questions; answers and chunks come after those that there are."""
    earlier = len(session.arms[arms[0].name].throughput_chunks)
    answers, chunks = answer_in_turns(
        arms, questions, settings.chunk_questions, settings.concurrent_clients, settings.neighbours, watch, earlier
    )
    for name, timed in chunks.items():
        session.answers[name] = session.answers.get(name, []) + answers[name]
        session.add(name, throughput_chunks=session.arms[name].throughput_chunks + timed)


def _least(chunks: Chunks) -> float:
    """Images a second of the slowest arm."""
    return min(sum(c.images for c in each) / sum(c.seconds for c in each) for each in chunks.values())


def report_phase(phase: str) -> None:
    """Tell which of the benchmark's phases begins."""
    enter_phase(_PHASES.index(phase), len(_PHASES) - 1, phase)

"""What an A/B test costs the requests, and a look at it."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.report import Row
from serving.release.experiments.assignment import HashSplit
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore, Outcome
from serving.release.experiments.experiment import canary
from serving.release.experiments.policy import Policy
from serving.release.experiments.recorder import Recorder
from serving.release.experiments.states import ExperimentStore

_EXPERIMENT = canary(
    "cost", control_digest="a" * 64, canary_digest="b" * 64, policy=Policy(ramp=(0.5,), vote_margin=0.05)
)


def cost_rows(events: int) -> list[Row]:
    """Assigning a user, recording an outcome, writing them all, and looking at them all; on a real SQLite file."""
    with tempfile.TemporaryDirectory(prefix="emuflow-experiments-") as folder:
        url = f"sqlite:///{Path(folder) / 'experiments.db'}"
        states, store = ExperimentStore(url), EventStore(url)
        states.change(_EXPERIMENT, expected_sequence=0, actor="benchmark", reason="start")
        split, rng = HashSplit(_EXPERIMENT), np.random.default_rng(0)
        assign_ms, record_ms = [], []
        started = time.perf_counter()
        with Recorder(store, _EXPERIMENT, capacity=events) as recorder:
            for number in range(events):
                before = time.perf_counter()
                assignment = split.assign(f"user-{number % (events // 2)}")
                assigned = time.perf_counter()
                recorder.record(Outcome(assignment, f"{number}", float(number), float(rng.gamma(4, 5))))
                record_ms.append(1000 * (time.perf_counter() - assigned))
                assign_ms.append(1000 * (assigned - before))
        assert recorder.lost == 0, "the recorder was closed, which writes everything"
        written_s = time.perf_counter() - started
        looks_ms = []
        for _ in range(3):
            before = time.perf_counter()
            Canary(states, store, _EXPERIMENT.name).look(now=1e9)
            looks_ms.append(1000 * (time.perf_counter() - before))
        states.close()
        store.close()
    return [
        Row("assign a user", *_quantiles(assign_ms), n=events),
        Row("record an outcome", *_quantiles(record_ms), n=events),
        Row("write them all", n=events, more={"events_per_s": events / written_s}),
        Row(f"look at {events} outcomes", *_quantiles(looks_ms), n=len(looks_ms)),
    ]


def _quantiles(values_ms: list[float]) -> tuple[float, float]:
    return float(np.median(values_ms)), float(np.quantile(values_ms, 0.95))

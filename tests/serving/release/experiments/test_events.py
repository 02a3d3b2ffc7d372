"""Outcome events: nothing implausible goes in, nothing is lost, and no request waits for the database."""

import math
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, OperationalError

from common.errors import DataError, UsageError
from serving.backoff import Backoff
from serving.release.experiments.assignment import Assignment
from serving.release.experiments.events import EventStore, Outcome, Vote
from serving.release.experiments.experiment import Experiment
from serving.release.experiments.recorder import Recorder
from tests.serving.release.experiments.conftest import CANARY, CHAMPION
from tests.serving.served import eventually

ON_CANARY = Assignment("e", "canary", "canary", 0.05, CANARY, "1" * 64)
ON_CHAMPION = Assignment("e", "champion", "canary", 0.05, CHAMPION, "2" * 64)


def outcome(number: int, assignment: Assignment = ON_CANARY, error: str | None = None) -> Outcome:
    return Outcome(assignment, f"response-{number}", time=1000.0 + number, latency_ms=10.0 + number, error=error)


@pytest.mark.parametrize("latency_ms", [math.nan, math.inf, -1.0])
def test_fault_18_a_latency_that_says_nothing_is_refused(latency_ms):
    with pytest.raises(DataError, match="response-1"):
        replace(outcome(1), latency_ms=latency_ms)


def test_a_time_or_a_vote_that_cannot_be_is_refused():
    with pytest.raises(DataError):
        replace(outcome(1), time=math.nan)
    with pytest.raises(DataError, match="not 2"):
        Vote(ON_CANARY, "response-1", 1000.0, 2)


def test_what_goes_in_comes_out_in_the_order_of_time(events: EventStore):
    events.write([outcome(2, error="ServerFault"), Vote(ON_CANARY, "response-2", 2000.0, -1)])
    events.write([outcome(1, ON_CHAMPION)])
    table = events.table("e", "canary", "outcome", [CHAMPION, CANARY])
    assert table.user_hash == ["2" * 64, "1" * 64]
    assert table.is_challenger.tolist() == [False, True] and table.failed.tolist() == [False, True]
    assert table.latency_ms.tolist() == [11.0, 12.0] and table.share.tolist() == [0.05, 0.05]
    assert events.table("e", "canary", "vote", [CANARY]).vote.tolist() == [-1.0]
    assert events.assignment("response-1") == ON_CHAMPION


def test_what_another_package_answered_is_no_evidence(events: EventStore):
    events.write([outcome(1), outcome(2, replace(ON_CANARY, package_digest="f" * 64))])
    table = events.table("e", "canary", "outcome", [CHAMPION, CANARY])
    assert (len(table), table.foreign) == (1, 1)


def test_the_summary_counts_each_arm(events: EventStore):
    events.write([outcome(1), outcome(2), outcome(3, error="TimedOut"), outcome(4, ON_CHAMPION)])
    events.write([Vote(ON_CANARY, "response-1", 2000.0, 1), Vote(ON_CANARY, "response-2", 2000.0, -1)])
    found = events.summary("e")
    assert [(arm.arm, arm.requests, arm.users, arm.errors) for arm in found] == [
        ("canary", 3, 1, 1),
        ("champion", 1, 1, 0),
    ]
    assert (found[0].good_votes, found[0].bad_votes, found[0].mean_latency_ms) == (1, 1, 12.0)


def test_a_batch_that_had_gone_in_after_all_is_not_counted_twice(events: EventStore):
    first, second = outcome(1), outcome(2)
    events.write([first])
    with pytest.raises(IntegrityError):
        events.write([first, second])
    events.write([first, second], again=True)
    assert len(events.table("e", "canary", "outcome", [CANARY])) == 2


def test_a_closed_recorder_has_written_everything(events: EventStore, experiment: Experiment):
    with Recorder(events, experiment, every_s=60) as recorder:
        for number in range(1234):
            assert recorder.record(outcome(number))
    assert recorder.lost == 0
    assert len(events.table("e", "canary", "outcome", [CANARY])) == 1234
    assert not recorder.record(outcome(9999)) and recorder.lost == 1


def test_an_unknown_arm_is_refused(events: EventStore, experiment: Experiment):
    with Recorder(events, experiment) as recorder, pytest.raises(UsageError, match="no arm 'other'"):
        recorder.record(outcome(1, replace(ON_CANARY, arm="other")))


def test_a_store_that_cannot_be_written_costs_counted_events_and_no_time(url, events, experiment, caplog):
    """The table is gone for a while: what finds room waits for it, the rest is counted."""
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE emuflow_outcomes RENAME TO elsewhere")
    recorder = Recorder(events, experiment, capacity=50, every_s=0.01, retry=Backoff(0.05, 0.1))
    taken_s = []
    for number in range(80):
        before = time.perf_counter()
        recorder.record(outcome(number))
        taken_s.append(time.perf_counter() - before)
    assert recorder.lost == 30 and statistics.median(taken_s) < 0.01
    assert not recorder.flush(0.2)
    assert "cannot be written and wait" in caplog.text and "is lost" in caplog.text
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO emuflow_outcomes")
    assert recorder.close() == 30
    assert len(events.table("e", "canary", "outcome", [CANARY])) == 50


class LosesTheAnswer(EventStore):
    """The connection breaks once after a commit, before the client learns of it."""

    broken = False

    def write(self, events, *, again=False):
        super().write(events, again=again)
        if not self.broken:
            self.broken = True
            raise OperationalError("COMMIT", None, Exception("connection lost"))


def test_a_commit_whose_answer_was_lost_is_not_repeated(url, experiment):
    store = LosesTheAnswer(url)
    with Recorder(store, experiment, every_s=0.01, retry=Backoff(0.01, 0.01)) as recorder:
        for number in range(20):
            recorder.record(outcome(number))
    assert store.broken and recorder.lost == 0
    assert len(store.table("e", "canary", "outcome", [CANARY])) == 20


def test_what_cannot_be_written_before_the_end_is_counted_as_lost(url, events, experiment):
    recorder = Recorder(events, experiment, every_s=0.01, retry=Backoff(30, 30))
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE emuflow_outcomes")
    for number in range(700):
        recorder.record(outcome(number))
    started = time.perf_counter()
    assert recorder.close(timeout_s=0.5) == 700
    assert time.perf_counter() - started < 5


def _write(url: str, first: int) -> int:
    store = EventStore(url)
    experiment = Experiment.parse(
        {
            "name": "e",
            "salt": "fixed-salt",
            "arms": [
                {"name": "champion", "digest": CHAMPION, "status": "control"},
                {"name": "canary", "digest": CANARY, "share": 0.05},
            ],
        }
    )
    recorder = Recorder(store, experiment, every_s=0.01)
    for number in range(first, first + 500):
        recorder.record(outcome(number))
        if number % 50 == 0:
            time.sleep(0.005)
    return recorder.close(timeout_s=60)


def test_several_processes_write_at_once_and_lose_nothing(url: str, tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(3, mp_context=context) as pool:
        lost = [done.result(timeout=120) for done in [pool.submit(_write, url, 1000 * number) for number in range(3)]]
    assert lost == [0, 0, 0]
    table = EventStore(url).table("e", "canary", "outcome", [CANARY])
    assert len(table) == 1500 and (np.diff(table.time) >= 0).all()


def test_events_are_there_soon_without_closing(events: EventStore, experiment: Experiment):
    with Recorder(events, experiment, every_s=0.05) as recorder:
        recorder.record(outcome(1))
        eventually(lambda: len(events.table("e", "canary", "outcome", [CANARY])) == 1)

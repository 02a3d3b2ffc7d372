"""`emuflow promote`, `rollback`, `history` and `audit`, on a home with packages, verdicts and a running server."""

import json
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from common.files import read_json, write_json
from emuflow_client import GeneratorClient
from serving.deployment import read_state
from tests.components.promote.conftest import empty_database, engine, place
from tests.components.promote.moves import UNREACHABLE, registered_without_policy
from tests.components.promote.place import Candidate, Place
from tests.pipelines.chain import Chain
from tests.serving.served import eventually

__all__ = ["empty_database", "engine", "place"]
FREE_PORTS = ("--grpc-port", "0", "--http-port", "0", "--metrics-port", "0")


@contextmanager
def serving(place: Place) -> Iterator[str]:
    """The endpoint of `emuflow serve`, once it answers."""
    process = Chain(place.root).start("serve", *FREE_PORTS)

    def endpoint() -> str | None:
        state = read_state(place.home.serving)
        return state.grpc_endpoint if state and state.digest else None

    try:
        eventually(lambda: process.poll() is not None or endpoint() is not None, timeout_s=120)
        yield str(endpoint())
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output


def version_that_answers(endpoint: str) -> str:
    with GeneratorClient(endpoint) as client:
        return client.generate("a red seven").version


@pytest.fixture
def candidates(place: Place) -> tuple[str, str]:
    """The champion, and a candidate in staging that was measured against it."""
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging")
    return first.int8, second.int8


def test_promoted_by_hand_then_rolled_back_under_a_running_server(place, candidates):
    first, second = candidates
    chain = Chain(place.root)
    with serving(place) as endpoint:
        assert version_that_answers(endpoint) == first
        said = chain.call("promote", "2", "--to", "champion")
        assert second[:12] in said and "The running server serves it" in said
        assert version_that_answers(endpoint) == second
        started = time.monotonic()
        said = chain.call("rollback", "--why", "it draws ghosts")
        assert time.monotonic() - started < 60
        assert first[:12] in said and "It answers, " in said and "s after the command" in said
        assert version_that_answers(endpoint) == first
        assert "no earlier champion" in chain.call("rollback", code=1)
        assert second[:12] in chain.call("rollback", "--to", second[:8])
        assert version_that_answers(endpoint) == second
    assert place.champion == second and place.alias() == "2"
    shown = chain.call("history")
    assert "ghosts" in shown and "evidence" in shown
    releases = chain.history()["releases"]
    assert [(row["stage"], row["digest"]) for row in releases][:3] == [
        ("champion", second),
        ("champion", first),
        ("champion", second),
    ]
    assert all(row["evidence_digest"] and row["audited"] for row in releases)
    assert "The audit log is whole" in chain.call("audit", "verify")
    assert "rollback" in chain.call("audit", "log")


def staged(place: Place, **settings: Any) -> str:
    """A candidate in staging beside a champion, registered under these promotion settings."""
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging", **settings)
    return second.int8


def test_who_approves_is_recorded_where_the_policy_wants_a_person(place):
    second = staged(place, approval="person")
    chain = Chain(place.root)
    assert "--approve-by NAME --why TEXT" in chain.call("promote", second[:10], "--to", "champion", code=1)
    assert "go together" in chain.call("promote", "2", "--to", "champion", "--approve-by", "Mara", code=2)
    chain.call("promote", "2", "--to", "champion", "--approve-by", "Mara", "--why", "seen on the wall")
    newest = chain.history()["champions"][0]
    assert (newest["digest"], newest["approved_by"], newest["approval_reason"]) == (second, "Mara", "seen on the wall")


def test_where_the_run_folder_is_gone_evidence_and_policy_are_those_that_were_registered(place):
    second = staged(place, approval="person")
    place.home.run("run-2").rename(place.root / "elsewhere")
    chain = Chain(place.root)
    assert "--approve-by NAME --why TEXT" in chain.call("promote", second[:8], "--to", "champion", code=1)
    assert place.champion != second
    said = chain.call("promote", second[:8], "--to", "champion", "--approve-by", "Mara", "--why", "seen on the wall")
    assert second[:12] in said and place.champion == second


def test_where_run_folder_and_policy_are_gone_nothing_is_promoted(place):
    candidate = place.candidate("run-1").judged()
    registered_without_policy(candidate)
    chain = Chain(place.root)
    assert candidate.int8[:12] in chain.call("promote", "1", "--to", "staging")
    place.home.run("run-1").rename(place.root / "elsewhere")
    assert "put the run's folder" in chain.call("promote", "1", "--to", "champion", code=1)
    assert place.champion is None
    write_json(place.home.run("run-1") / "settings.json", {"promotion": {}})
    chain.call("promote", "1", "--to", "champion")
    assert place.champion == candidate.int8


def test_fault_21_a_rollback_to_a_number_needs_no_tracking_server(place, monkeypatch):
    second = staged(place)
    chain = Chain(place.root)
    chain.call("promote", "2", "--to", "champion")
    for name, value in (("MLFLOW_TRACKING_URI", UNREACHABLE), ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")):
        monkeypatch.setenv(name, value)
    chain.call("rollback", "--to", "1", "--of", "2")
    assert place.store.current().previous_digest == second
    chain.call("rollback", "--to", "7", code=1)


@pytest.mark.parametrize("version", ["7", "abc", "0123456789abcdef"])
def test_what_there_is_not_is_wrong_use(place, candidates, version):
    assert "see `emuflow history`" in Chain(place.root).call("promote", version, "--to", "champion", code=2)


def test_a_log_that_was_tampered_with_is_named_and_ends_with_one(place, candidates):
    with sqlite3.connect(place.root / "mlflow" / "mlflow.db") as connection:
        connection.execute("UPDATE emuflow_releases SET actor = 'nobody' WHERE stage = 'champion'")
    chain = Chain(place.root)
    assert "champion #1: it was altered" in chain.call("audit", "verify", code=1)
    found = json.loads(chain.call("audit", "verify", "--json", code=1))
    assert [finding["where"] for finding in found["findings"]] == ["champion #1"]


def test_a_log_that_cannot_be_read_is_told_without_a_crash(place, candidates):
    with sqlite3.connect(place.root / "mlflow" / "mlflow.db") as connection:
        for sequence, content in (
            (2, """replace(content, '"stage"', '"stgae"')"""),
            (3, "'no JSON'"),
            (4, "replace(content, 'tester', '[/x]')"),
        ):
            connection.execute(f"UPDATE emuflow_audit SET content = {content} WHERE sequence = {sequence}")
    chain = Chain(place.root)
    assert "entry 2: what it says of a release row cannot be read" in chain.call("audit", "verify", code=1)
    found = json.loads(chain.call("audit", "verify", "--json", code=1))
    assert {"entry 2", "entry 3", "entry 4"} <= {finding["where"] for finding in found["findings"]}
    shown = chain.call("audit", "log")
    assert "cannot" in shown and "opened" in shown and "[/x]" in shown


def test_a_verdict_that_was_never_registered_is_not_passed_over(place, candidates):
    _, second = candidates
    full = read_json(place.home.run("run-2") / "exported" / "export.json")["fp32"]
    measured = Candidate(place, place.home.run("run-3"), second, full)
    measured.judged(accuracy=0.5, champion=place.champion)
    said = " ".join(Chain(place.root).call("promote", "2", "--to", "champion", code=1).split())
    assert "never registered" in said and f"emuflow measure {second[:12]}" in said and place.champion != second


def test_where_nothing_was_released_looking_leaves_nothing_behind(tmp_path: Path):
    for command in (("audit", "verify"), ("audit", "log"), ("rollback",), ("promote", "1", "--to", "staging")):
        assert "nothing was released here" in Chain(tmp_path / "runs").call(*command, code=2)
    assert not (tmp_path / "runs" / "mlflow" / "mlflow.db").exists()

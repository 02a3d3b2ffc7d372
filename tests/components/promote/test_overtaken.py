"""A promotion whose server follows late: a later decision stands, and is what is told."""

import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from components.promote import follow
from components.promote.advance import AdvanceResult
from components.promote.promote import PromotionResult
from serving.deployment import locked, read_state
from serving.release.store import TABLE_NAME, ReleaseStore
from tests.components.promote.moves import moved
from tests.components.promote.place import Candidate, Place
from tests.components.promote.test_crashes import SELDOM_S, serving
from tests.serving.served import eventually

Promote = Callable[[Candidate], PromotionResult | AdvanceResult]


def by_the_pipeline(candidate: Candidate) -> PromotionResult:
    return candidate.promoted()


def by_hand(candidate: Candidate) -> AdvanceResult:
    candidate.promoted(to="staging")
    return moved(candidate, "champion")


@pytest.mark.parametrize("promote", [by_the_pipeline, by_hand])
def test_fault_19_a_server_that_follows_late_serves_what_was_decided_since(place: Place, promote: Promote):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    results: list[PromotionResult | AdvanceResult] = []
    promoting = threading.Thread(target=lambda: results.append(promote(second)))
    with serving(place, SELDOM_S):
        with locked(place.home.serving):  # as another process does that changes what is served
            promoting.start()
            eventually(lambda: place.champion == second.int8 and place.alias() == "2")
            promoting.join(1)  # it waits for the lock
            assert promoting.is_alive()
            place.store.roll_back(first.int8, expected_current=second.int8, actor="operator", reason="it draws ghosts")
        promoting.join(60)
        state = read_state(place.home.serving)
        assert state is not None and state.digest == first.int8 == place.champion
    (result,) = results
    assert result.server == "another champion"
    if isinstance(result, PromotionResult):
        assert result.stage == "champion" and result.champion == first.int8


def test_a_store_that_does_not_answer_leaves_the_server_and_the_promotion_as_they_are(place: Place):
    first = place.candidate("run-1").judged()
    first.promoted()
    store = ReleaseStore(f"sqlite:///{place.root / 'away.db'}")
    with closing(sqlite3.connect(place.root / "away.db")) as connection:
        connection.execute(f"DROP TABLE {TABLE_NAME}")
    with serving(place, SELDOM_S):
        assert follow.server(place.home.serving, place.home.packages, store, "0" * 64) == "failed"
        state = read_state(place.home.serving)
        assert state is not None and state.digest == first.int8
    store.close()

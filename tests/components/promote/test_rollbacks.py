"""The way back to an earlier champion, with a real MLflow store, a real release store and real signed packages."""

import pytest

from common.errors import GateError, PromotionConflictError, SignatureError, UsageError
from serving.release.verification import verify_audit_log
from tests.components.promote.moves import UNREACHABLE, damage, rolled_back


def test_a_rollback_puts_the_champion_before_back(place, champions):
    first, second = champions
    done = rolled_back(place)
    assert (done.release.digest, done.release.previous_digest, done.resumed) == (first.int8, second.int8, False)
    assert (done.release.actor, done.release.reason, done.server) == ("operator", "it draws ghosts", "not running")
    assert place.champion == first.int8 and place.alias() == "1"
    assert place.actions()[-2:] == ["rollback", "rollback completed"]
    with pytest.raises(GateError, match="no earlier champion"):
        rolled_back(place)
    with pytest.raises(UsageError, match="the champion already"):
        rolled_back(place, first.int8)
    assert rolled_back(place, second.int8).release.digest == second.int8 == place.champion
    assert verify_audit_log(place.url, place.home.keys).findings == ()


def test_a_step_that_is_repeated_after_a_rollback_does_not_undo_it(place, champions):
    first, second = champions
    rolled_back(place)
    with pytest.raises(PromotionConflictError, match="it draws ghosts"):
        second.promoted()
    assert place.champion == first.int8


def test_fault_22_nothing_goes_back_to_a_damaged_package(place, champions):
    first, second = champions
    damage(first)
    with pytest.raises(SignatureError):
        rolled_back(place)
    assert place.champion == second.int8 and place.actions()[-1] == "refusal"


def test_fault_21_a_rollback_does_not_wait_for_the_tracking_server(place, champions, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    first, _ = champions
    assert rolled_back(place, tracking_uri=UNREACHABLE).release.digest == first.int8 == place.champion
    assert place.alias() == "2" and place.store.audit_log()[-1].parsed()["aliases"] is False
    with pytest.raises(UsageError, match="the champion already"):
        rolled_back(place, first.int8)
    assert place.alias() == "1"  # asked again, what did not follow follows


def test_fault_21_a_second_rollback_goes_further_back_while_the_tracking_server_is_away(place, champions, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    first, second = champions
    place.candidate("run-3").judged(champion=second.int8).promoted()
    for earlier in (second, first):
        done = rolled_back(place, tracking_uri=UNREACHABLE)
        assert (done.release.digest, done.resumed) == (earlier.int8, False) and place.champion == earlier.int8
    assert verify_audit_log(place.url, place.home.keys).findings == ()


def test_fault_20_a_rollback_that_never_came_to_its_end_is_finished_and_goes_no_further_back(place, champions):
    first, second = champions
    third = place.candidate("run-3").judged(champion=second.int8)
    third.promoted()
    place.store.roll_back(
        second.int8, expected_current=third.int8, actor="operator", reason="then the machine went off"
    )
    done = rolled_back(place)
    assert done.resumed and done.release.digest == second.int8 == place.champion and place.alias() == "2"
    assert rolled_back(place).release.digest == first.int8


def test_a_rollback_of_a_named_champion_changes_nothing_the_second_time(place, champions):
    first, second = champions
    third = place.candidate("run-3").judged(champion=second.int8)
    third.promoted()
    assert rolled_back(place, taken_back=third.int8).release.digest == second.int8
    with pytest.raises(GateError, match=r"is not the champion.*nothing was changed"):
        rolled_back(place, taken_back=third.int8)
    assert place.champion == second.int8
    assert rolled_back(place).release.digest == first.int8

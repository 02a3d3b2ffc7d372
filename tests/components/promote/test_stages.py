"""Stages and promotion by hand, with a real MLflow store, a real release store and real signed packages."""

import sqlite3

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from common.errors import GateError, PromotionConflictError, SignatureError
from common.files import read_json, write_json
from serving.release.rows import Approval
from tests.components.promote.moves import at_the_first_lock, damage, moved, registered_without_policy
from tests.components.promote.place import SETTINGS, Candidate


def test_a_pass_is_a_row_of_each_stage_with_one_evidence(place):
    candidate = place.candidate("run-1").judged()
    assert candidate.promoted().stage == "champion"
    rows = [place.store.current(stage) for stage in ("candidate", "staging", "champion")]
    assert [row.action for row in rows] == ["registration", "promotion", "promotion"]
    assert {row.digest for row in rows} == {candidate.int8} and len({row.evidence_digest for row in rows}) == 1
    assert place.actions() == ["opened", "registration", "promotion", "promotion"]
    assert place.alias() == place.alias("staging") == place.alias("candidate") == "1"


def test_the_pipeline_stops_at_staging_where_the_settings_say_so(place):
    candidate = place.candidate("run-1").judged()
    result = candidate.promoted(to="staging")
    assert (result.promoted, result.stage, result.champion) == (False, "staging", None)
    assert place.champion is None and place.alias() is None and place.alias("staging") == result.version
    done = moved(candidate, "champion")
    assert (done.version, done.already, done.server) == (result.version, False, "not running")
    assert place.champion == candidate.int8 and place.alias() == result.version
    assert len(place.store.history("staging")) == 1
    assert moved(candidate, "champion").already and len(place.store.history()) == 1


def test_a_person_is_asked_where_the_policy_wants_one(place):
    candidate = place.candidate("run-1").judged()
    assert candidate.promoted(approval="person").stage == "staging"
    with pytest.raises(GateError, match="--approve-by NAME --why TEXT"):
        moved(candidate, "champion", of_run=SETTINGS)  # whatever the settings say since
    assert place.champion is None and place.actions()[-1] == "refusal"
    release = moved(candidate, "champion", Approval("Mara", "seen on the wall")).release
    assert (release.actor, release.approved_by, release.approval_reason) == ("operator", "Mara", "seen on the wall")
    assert place.actions()[-2:] == ["approval", "promotion"]


def test_a_fail_is_refused_by_hand_too(place):
    worse = place.candidate("run-1").judged(accuracy=0.5)
    assert worse.promoted().stage == "candidate"
    with pytest.raises(GateError, match="FAIL, not PASS"):
        moved(worse, "staging")
    assert place.champion is None and place.store.current("staging") is None
    assert place.actions() == ["opened", "registration", "refusal", "refusal"]


def test_fault_19_evidence_against_another_champion_must_be_measured_again(place):
    one, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    other.promoted(to="staging")
    one.promoted()
    with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
        moved(other, "champion")
    assert place.champion == one.int8 and place.actions()[-1] == "refusal"
    assert place.version("1").tags["promotion"] == "refused"


def test_a_verdict_that_was_edited_after_it_was_registered_is_refused(place):
    candidate = place.candidate("run-1").judged()
    candidate.promoted(to="staging")
    file = candidate.folder / "verdict" / "verdict.json"
    write_json(file, read_json(file) | {"reasons": ["better than ever"]})
    with pytest.raises(GateError, match="was registered with"):
        moved(candidate, "champion")
    assert place.champion is None


def test_a_verdict_about_another_package_is_no_evidence_for_this_one(place):
    candidate, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    candidate.promoted(to="staging")
    with pytest.raises(GateError, match="is about package"):
        moved(Candidate(place, candidate.folder, other.int8, other.fp32), "champion")


def test_fault_22_a_package_that_was_altered_in_staging_does_not_become_the_champion(place):
    candidate = place.candidate("run-1").judged()
    candidate.promoted(to="staging")
    damage(candidate)
    with pytest.raises(SignatureError):
        moved(candidate, "champion")
    assert place.champion is None and place.actions()[-1] == "refusal"


def test_evidence_whose_policy_is_known_nowhere_makes_no_champion(place):
    candidate = place.candidate("run-1").judged()
    registered_without_policy(candidate)
    moved(candidate, "staging")
    with pytest.raises(GateError, match=r"registered without its policy.*\n.*settings.json"):
        moved(candidate, "champion", Approval("Mara", "seen on the wall"))
    assert place.champion is None and place.actions()[-1] == "refusal"
    with pytest.raises(GateError, match="--approve-by NAME"):
        moved(candidate, "champion", of_run=SETTINGS.model_copy(update={"approval": "person"}))
    assert moved(candidate, "champion", of_run=SETTINGS).release.digest == candidate.int8 == place.champion


def test_a_policy_that_was_altered_in_the_audit_log_lets_nothing_through(place):
    candidate = place.candidate("run-1").judged()
    candidate.promoted(approval="person")
    with sqlite3.connect(place.root / "mlflow" / "mlflow.db") as connection:
        changed = """UPDATE emuflow_audit SET content = replace(content, '"approval":"person"', '"approval":"none"')"""
        assert connection.execute(changed).rowcount
    with pytest.raises(GateError, match=r"was altered\n.*audit verify"):
        moved(candidate, "champion", of_run=SETTINGS)
    assert place.champion is None


def test_of_two_packages_that_come_to_staging_at_once_the_second_is_told(place):
    one, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    for each in (one, other):
        registered_without_policy(each)
    listener = at_the_first_lock(lambda: moved(one, "staging"))
    try:
        with pytest.raises(PromotionConflictError, match=f"package {one.int8} came to staging meanwhile"):
            moved(other, "staging")
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    assert [row.digest for row in place.store.history("staging")] == [one.int8]
    assert place.actions()[-1] == "refusal"
    assert moved(other, "staging").release.previous_digest == one.int8  # knowing of it, it may


def test_fault_21_a_conflict_stays_one_where_the_registry_cannot_show_it(place, caplog):
    one, other = place.candidate("run-1").judged(), place.candidate("run-2").judged()
    other.promoted(to="staging")
    one.promoted()
    with sqlite3.connect(place.root / "mlflow" / "mlflow.db") as connection:
        connection.execute(
            "CREATE TRIGGER away BEFORE INSERT ON model_version_tags WHEN NEW.key = 'promotion' "
            "BEGIN SELECT RAISE(FAIL, 'away'); END"
        )
    for command in (lambda: moved(other, "champion"), other.promoted):
        with pytest.raises(PromotionConflictError, match="measure the candidate against the new champion"):
            command()
    assert "does not show that its promotion was refused" in caplog.text

"""Stages, promotion by hand and rollback, with a real MLflow store, a real release store and real signed packages."""

import sqlite3
from collections.abc import Callable
from typing import Literal

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

from common.errors import GateError, PromotionConflictError, SignatureError, UsageError
from common.files import read_json, write_json
from components.gate.verdict import evidence_digest, read_verdict
from components.promote.advance import AdvanceResult, advance
from components.promote.canary import experiments, start_canary
from components.promote.evidence import to_register, verified
from components.promote.registry import Registry
from components.promote.rollback import RollbackResult, roll_back
from components.promote.settings import PromotionSettings
from serving.release.experiments.canary import Canary
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import Experiment, Status
from serving.release.experiments.policy import Policy
from serving.release.experiments.states import ExperimentStore
from serving.release.rows import Approval
from serving.release.verification import verify_audit_log
from tests.components.promote.place import SETTINGS, Candidate, Place

UNREACHABLE = "http://127.0.0.1:9"


def moved(
    candidate: Candidate,
    to: Literal["staging", "champion"],
    approval: Approval | None = None,
    *,
    of_run: PromotionSettings | None = None,
) -> AdvanceResult:
    """By the policy that it was registered under; `of_run` is that of its run, where its settings are there."""
    place = candidate.place
    return advance(
        SETTINGS.registered_model,
        of_run,
        candidate.int8,
        to,
        candidate.folder / "verdict",
        actor="operator",
        approval=approval,
        package_store=place.home.packages,
        key_folder=place.home.keys,
        release_url=place.url,
        experiments_url=place.home.experiments_url,
        serving=place.home.serving,
        tracking_uri=place.url,
    )


def rolled_back(
    place: Place, to: str | None = None, *, tracking_uri: str | None = None, taken_back: str | None = None
) -> RollbackResult:
    return roll_back(
        SETTINGS.registered_model,
        to,
        taken_back=taken_back,
        actor="operator",
        reason="it draws ghosts",
        package_store=place.home.packages,
        key_folder=place.home.keys,
        release_url=place.url,
        serving=place.home.serving,
        tracking_uri=tracking_uri or place.url,
        experiments_url=place.home.experiments_url,
    )


def damage(candidate: Candidate) -> None:
    weights = candidate.place.home.packages / candidate.int8 / "1" / "engine" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])


@pytest.fixture
def champions(place: Place) -> tuple[Candidate, Candidate]:
    """Two, one after the other; the second one is the champion."""
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted()
    return first, second


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


def begun(candidate: Candidate, name: str = "spring") -> Experiment:
    place = candidate.place
    return start_canary(
        None,
        candidate.int8,
        name=name,
        actor="operator",
        reason="spring",
        release_url=place.url,
        experiments_url=place.home.experiments_url,
    ).experiment


def decided(place: Place, status: Status, name: str = "spring") -> None:
    """The canary comes to an end."""
    with experiments(place.home.experiments_url) as states:
        record = states.current(name)
        arm = record.experiment.arm("canary")
        share = 0.0 if status == "stopped" else arm.share
        changed = record.experiment.with_arm(arm.model_copy(update={"status": status, "share": share}))
        states.change(changed, expected_sequence=record.sequence, actor="canary", reason=f"it {status}")


def test_a_canary_that_passed_is_asked_for_where_the_policy_wants_one(place):
    first = place.candidate("run-1").judged()
    assert first.promoted(canary="required").stage == "staging"
    moved(first, "champion")  # nothing to compare the first champion with
    second = place.candidate("run-2").judged(champion=first.int8)
    assert second.promoted(canary="required").stage == "staging"
    with pytest.raises(GateError, match="there is none"):
        moved(second, "champion")
    experiment = begun(second)
    assert (experiment.control.digest, experiment.arm("canary").digest) == (first.int8, second.int8)
    with pytest.raises(GateError, match="'spring' is running"):
        moved(second, "champion")
    decided(place, "passed")
    release = moved(second, "champion").release
    assert place.champion == second.int8 and "canary 'spring' (state 2): it passed" in release.reason
    assert place.actions()[-4:] == ["promotion", "refusal", "refusal", "promotion"]
    assert moved(second, "champion").already
    with experiments(place.home.experiments_url) as states:
        ended = states.current("spring")
    assert (ended.experiment.arm("canary").share, ended.reason) == (0, "its package is the champion now")


def test_a_canary_that_was_stopped_or_was_another_package_s_is_no_evidence(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(canary="required")
    begun(second)
    decided(place, "passed")
    decided(place, "stopped")
    with pytest.raises(GateError, match="'spring' is stopped"):
        moved(second, "champion")
    third = place.candidate("run-3").judged(champion=first.int8)
    third.promoted(canary="required")
    begun(third, "summer")
    decided(place, "passed", "summer")
    with pytest.raises(GateError, match="'spring' is stopped"):
        moved(second, "champion")
    assert moved(third, "champion").release.digest == third.int8


def test_a_canary_begins_only_with_what_stands_in_staging_and_one_at_a_time(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    with pytest.raises(GateError, match="the champion already"):
        begun(first)
    second = place.candidate("run-2").judged(champion=first.int8)
    with pytest.raises(GateError, match="is not in staging"):
        begun(second)
    second.promoted(to="staging")
    begun(second)
    with pytest.raises(UsageError, match="outcomes belong to a name"):
        begun(second)
    with pytest.raises(UsageError, match="'spring' runs"):
        begun(second, "summer")
    decided(place, "stopped")
    assert begun(second, "summer").arm("canary").share > 0


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


def registered_without_policy(candidate: Candidate) -> None:
    """As the version before policies were noted did it."""
    place, folder = candidate.place, candidate.folder / "verdict"
    found, evidence, package = read_verdict(folder), evidence_digest(folder), place.home.packages / candidate.int8
    manifest = verified(found, package, place.home.keys)
    described = to_register(found, manifest, package, folder, evidence)
    Registry(SETTINGS.registered_model, place.url).register(described, place.run_id)
    against = found.champion_digest
    place.store.register(
        candidate.int8, evidence_digest=evidence, measured_against=against, actor="tester", reason="PASS"
    )


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


def test_a_canary_goes_by_the_policy_that_was_registered_or_does_not_begin(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging", canary_policy=Policy(error_margin=0.125))
    assert begun(second).policy.error_margin == 0.125
    decided(place, "stopped")
    third = place.candidate("run-3").judged(champion=first.int8)
    registered_without_policy(third)
    moved(third, "staging")
    with pytest.raises(GateError, match="registered without its policy"):
        begun(third, "summer")


def test_a_policy_that_was_altered_in_the_audit_log_lets_nothing_through(place):
    candidate = place.candidate("run-1").judged()
    candidate.promoted(approval="person")
    with sqlite3.connect(place.root / "mlflow" / "mlflow.db") as connection:
        changed = """UPDATE emuflow_audit SET content = replace(content, '"approval":"person"', '"approval":"none"')"""
        assert connection.execute(changed).rowcount
    with pytest.raises(GateError, match=r"was altered\n.*audit verify"):
        moved(candidate, "champion", of_run=SETTINGS)
    assert place.champion is None


def at_the_first_lock(act: Callable[[], object]) -> Callable[..., None]:
    """Do something right before this process first asks for a database's write lock: what it has read is old then."""
    waiting = [act]

    def listener(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("BEGIN") and waiting:
            waiting.pop()()

    event.listen(Engine, "before_cursor_execute", listener)
    return listener


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


def canary_of(place: Place, name: str = "spring") -> tuple[Status, float, str]:
    with experiments(place.home.experiments_url) as states:
        record = states.current(name)
    arm = record.experiment.arm("canary")
    return arm.status, arm.share, record.reason


def test_a_canary_ends_with_the_champion_that_it_was_compared_with(place, champions):
    first, second = champions
    third = place.candidate("run-3").judged(champion=second.int8)
    third.promoted(to="staging")
    begun(third)
    rolled_back(place)
    replaced = f"was replaced by {first.int8[:12]}"
    status, share, reason = canary_of(place)
    assert (status, share) == ("stopped", 0) and second.int8[:12] in reason and replaced in reason
    fourth = place.candidate("run-4").judged(champion=first.int8)
    fourth.promoted(to="staging")
    begun(fourth, "summer")
    place.candidate("run-5").judged(champion=first.int8).promoted(experiments_url=place.home.experiments_url)
    assert canary_of(place, "summer")[0] == "stopped" and "was replaced by" in canary_of(place, "summer")[2]


def test_of_two_canaries_that_start_at_once_one_begins(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(to="staging")
    with experiments(place.home.experiments_url):  # its tables are there
        listener = at_the_first_lock(lambda: begun(second, "spring"))
    try:
        with pytest.raises(UsageError, match="'spring' runs"):
            begun(second, "summer")
    finally:
        event.remove(Engine, "before_cursor_execute", listener)
    with experiments(place.home.experiments_url) as states:
        assert [record.experiment.name for record in states.newest()] == ["spring"]


def test_the_newest_verdict_of_a_pair_decides(place):
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    second.promoted(canary="required")
    begun(second)
    decided(place, "passed")
    url = place.home.experiments_url
    states, events = ExperimentStore(url), EventStore(url)
    old = Canary(states, events, "spring")
    old.set_share("canary", 0.0, actor="operator", reason="parked")
    begun(second, "summer")
    with pytest.raises(UsageError, match="'summer' runs"):
        old.set_share("canary", 0.1, actor="operator", reason="both")
    decided(place, "stopped", "summer")
    old.set_share("canary", 0.1, actor="operator", reason="the last change, and no verdict")
    with pytest.raises(GateError, match="'summer' is stopped"):
        moved(second, "champion")
    states.close()
    events.close()

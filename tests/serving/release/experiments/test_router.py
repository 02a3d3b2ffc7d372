"""The router without a server: where requests go, what is recorded, and that no fault of the store reaches a user."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import sqlalchemy as sa

from common.errors import DataError, UsageError
from emuflow_client import Result, ServerFault
from serving.backoff import Backoff
from serving.release.experiments.assignment import Assignment, HashSplit
from serving.release.experiments.canary import Canary
from serving.release.experiments.evaluation import evaluate
from serving.release.experiments.experiment import canary
from serving.release.experiments.recorder import Recorder
from serving.release.experiments.router import Router
from serving.release.experiments.stored_split import StoredSplit
from serving.release.experiments.watch import Watch
from tests.serving.release.experiments.conftest import CANARY, CHAMPION, POLICY
from tests.serving.served import eventually


class Echo:
    """A generator of this process: anything with `generate` is a client."""

    def __init__(self, version: str, *, fails: bool = False, seconds: float = 0.0):
        self.version, self.fails, self.seconds = version, fails, seconds
        self.prompts: list[str] = []

    def generate(self, prompt: str, **options) -> Result:
        self.prompts.append(prompt)
        time.sleep(self.seconds)
        if self.fails:
            raise ServerFault("INTERNAL: no")
        return Result(np.zeros((1, 1, 3), np.uint8), None, "final", self.version, options.get("seed") or 0, {})


@pytest.fixture
def recorder(events, experiment):
    with Recorder(events, experiment, every_s=0.01, retry=Backoff(0.05, 0.1)) as running:
        yield running


def users_of(experiment, arm: str, count: int) -> list[str]:
    split = HashSplit(experiment)
    return [user for user in (f"user-{number}" for number in range(2000)) if split.assign(user).arm == arm][:count]


def test_a_users_requests_go_to_their_arm_and_are_recorded(events, experiment, recorder):
    clients = {"champion": Echo(CHAMPION), "canary": Echo(CANARY, seconds=0.02)}
    router = Router(HashSplit(experiment), clients, recorder, events)
    for arm in clients:
        for user in users_of(experiment, arm, 3):
            answer = router.generate(user, user, seed=7)
            assert (answer.arm, answer.result.seed) == (arm, 7)
        assert clients[arm].prompts == users_of(experiment, arm, 3)
    assert recorder.flush()
    table = events.table("e", "canary", "outcome", [CHAMPION, CANARY])
    assert len(table) == 6 and (table.latency_ms[table.is_challenger] >= 20).all() and not table.failed.any()
    assert (table.latency_ms[~table.is_challenger] < 20).all() and np.abs(table.time - time.time()).max() < 60


def test_an_error_is_recorded_by_its_type_and_raised(url, events, experiment, recorder):
    router = Router(
        HashSplit(experiment), {"champion": Echo(CHAMPION), "canary": Echo(CANARY, fails=True)}, recorder, events
    )
    with pytest.raises(ServerFault):
        router.generate(users_of(experiment, "canary", 1)[0], "a red seven")
    assert recorder.flush()
    with sa.create_engine(url).connect() as connection:
        assert connection.exec_driver_sql("SELECT arm, error FROM emuflow_outcomes").all() == [
            ("canary", "ServerFault")
        ]


def test_the_version_that_answered_is_recorded_not_the_one_that_should_have(events, experiment, recorder):
    router = Router(HashSplit(experiment), {"champion": Echo("f" * 64), "canary": Echo(CANARY)}, recorder, events)
    router.generate(users_of(experiment, "champion", 1)[0], "a red seven")
    assert recorder.flush()
    assert events.table("e", "canary", "outcome", [CHAMPION, CANARY]).foreign == 1


def test_a_vote_belongs_to_its_answer_also_after_a_restart(events, experiment, recorder):
    clients = {"champion": Echo(CHAMPION), "canary": Echo(CANARY)}
    router = Router(HashSplit(experiment), clients, recorder, events)
    first = router.generate(users_of(experiment, "canary", 1)[0], "a red seven")
    assert router.vote(first.response_id, -1)  # perhaps before the outcome is written
    assert recorder.flush()
    assert Router(HashSplit(experiment), clients, recorder, events).vote(first.response_id, 1)
    assert recorder.flush()
    votes = events.table("e", "canary", "vote", [CANARY])
    assert votes.vote.tolist() == [-1.0, 1.0] and votes.is_challenger.all()
    with pytest.raises(UsageError, match="no outcome"):
        router.vote("unknown", 1)
    with pytest.raises(DataError):
        router.vote(first.response_id, 0)


def test_fault_24_a_user_is_answered_while_the_store_cannot_be_written(url, events, experiment):
    with sa.create_engine(url).begin() as connection:
        connection.exec_driver_sql("DROP TABLE emuflow_outcomes")
    recorder = Recorder(events, experiment, capacity=3, every_s=0.01, retry=Backoff(5, 5))
    router = Router(HashSplit(experiment), {"champion": Echo(CHAMPION), "canary": Echo(CANARY)}, recorder, events)
    answers = [router.generate(user, "a red seven") for user in users_of(experiment, "champion", 10)]
    assert len(answers) == 10 and recorder.lost == 7
    assert recorder.close(timeout_s=0.1) == 10


def test_clients_and_arms_must_be_the_same(events, experiment, recorder):
    with pytest.raises(UsageError, match="one for each of champion, canary"):
        Router(HashSplit(experiment), {"champion": Echo(CHAMPION)}, recorder, events)


def test_an_arm_that_the_clusters_split_invents_is_refused(events, experiment, recorder):
    class Wrong:
        def assign(self, user_id: str) -> Assignment:
            return Assignment("e", "other", "canary", 0.05, CANARY, "1" * 64)

    router = Router(Wrong(), {"champion": Echo(CHAMPION), "canary": Echo(CANARY)}, recorder, events)
    with pytest.raises(UsageError, match="'other'"):
        router.generate("user-1", "a red seven")


def test_shares_change_while_requests_run(states, events, experiment, recorder):
    """No request fails or meets a wrong arm, and the new share arrives by itself."""
    user = users_of(experiment, "canary", 1)[0]
    with StoredSplit(states, "e", poll_s=0.02) as split:
        router = Router(split, {"champion": Echo(CHAMPION), "canary": Echo(CANARY)}, recorder, events)
        arms: list[str] = []
        done = threading.Event()

        def ask() -> None:
            while not done.is_set():
                arms.append(router.generate(user, "a red seven").arm)
                time.sleep(0.001)

        thread = threading.Thread(target=ask)
        thread.start()
        Canary(states, events, "e").set_share("canary", 0.0, actor="anna", reason="off")
        eventually(lambda: arms[-1:] == ["champion"])
        Canary(states, events, "e").set_share("canary", 0.05, actor="anna", reason="on")
        eventually(lambda: arms[-1:] == ["canary"])
        done.set()
        thread.join()


def test_a_split_that_cannot_be_read_stays_as_it_was(url, states, experiment, caplog):
    user = users_of(experiment, "canary", 1)[0]
    with StoredSplit(states, "e", poll_s=0.01) as split:
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE emuflow_experiments RENAME TO elsewhere")
        eventually(lambda: "is tried again" in caplog.text)
        assert split.assign(user).arm == "canary"
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO emuflow_experiments")
        eventually(lambda: "works again" in caplog.text)


def test_nobody_is_sent_to_a_canary_whose_model_is_not_served(url, states, events):
    """Before it is loaded, and while a server that died comes back: the control answers, and nobody counts."""
    policy = POLICY.model_copy(update={"ramp": (0.5,)})
    made = canary("w", control_digest=CHAMPION, canary_digest=CANARY, salt="fixed-salt", policy=policy, served=False)
    states.change(made, expected_sequence=0, actor="tester", reason="start")
    clients = {"champion": Echo(CHAMPION), "canary": Echo(CANARY, fails=True)}
    user = users_of(made.with_arm(made.arm("canary").model_copy(update={"served": True})), "canary", 1)[0]
    with Recorder(events, made, every_s=0.01) as recorder, StoredSplit(states, "w", poll_s=0.02) as split:
        router = Router(split, clients, recorder, events)
        assert {router.generate(f"user-{number}", "a red seven").arm for number in range(60)} == {"champion"}
        assert recorder.flush()
        seen = evaluate(events, states.current("w").experiment, made.arm("canary"), time.time() + 1)
        assert seen.users_at_share == (0, 0) and seen.assignment_fits
        with closing(Watch(lambda: url, lambda: CHAMPION)) as watch:
            clients["canary"].fails = False
            watch.served(CANARY)
            eventually(lambda: router.generate(user, "a red seven").arm == "canary")
            watch.served(None)
            eventually(lambda: router.generate(user, "a red seven").arm == "champion")
            watch.served(CHAMPION)  # another package under that name
            time.sleep(0.6)
            assert router.generate(user, "a red seven").arm == "champion"
    reasons = [record.reason for record in states.history("w")]
    assert reasons == ["its model is not served: its users are sent to the control", "its model is served", "start"]
    assert states.current("w").experiment.arm("canary").share == 0.5


def test_an_error_is_the_package_s_that_answers_now_as_an_image_is(events, experiment, recorder):
    """The champion was replaced under the control: what it answers, and where it fails, is no evidence of the old one."""
    control = Echo("f" * 64)
    router = Router(HashSplit(experiment), {"champion": control, "canary": Echo(CANARY)}, recorder, events)
    users = users_of(experiment, "champion", 4)
    router.generate(users[0], "a red seven")
    control.fails = True
    for user in users[1:]:
        with pytest.raises(ServerFault):
            router.generate(user, "a red seven")
    assert recorder.flush()
    table = events.table("e", "canary", "outcome", [CHAMPION, CANARY])
    assert (len(table), table.foreign) == (0, 4)


def test_a_watch_that_cannot_look_harms_nobody_and_goes_on(url, states, events, experiment, caplog):
    champion: list[str] = []
    with closing(Watch(lambda: url, lambda: champion[0], every_s=0.1)) as watch:
        watch.served(CANARY)
        eventually(lambda: "watching the canary fails and is tried again" in caplog.text)
        assert states.current("e").experiment.arm("canary").status == "running"
        champion.append("f" * 64)
        eventually(lambda: states.current("e").experiment.arm("canary").status == "stopped")
    assert "was replaced by ffffffffffff" in states.current("e").reason

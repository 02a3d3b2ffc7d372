"""`emuflow canary`, from staging to champion: a running server, routed users, and what is proven of them."""

import json
import time
from contextlib import ExitStack

from emuflow_client import GeneratorClient, GeneratorError
from serving.release.experiments.assignment import HashSplit
from serving.release.experiments.events import EventStore
from serving.release.experiments.policy import Policy
from serving.release.experiments.recorder import Recorder
from serving.release.experiments.router import Router
from serving.release.experiments.states import ExperimentStore
from serving.release.experiments.stored_split import StoredSplit
from tests.components.promote.conftest import empty_database, engine, place
from tests.components.promote.place import Place
from tests.pipelines.chain import Chain
from tests.pipelines.test_release_commands import candidates, serving, staged
from tests.serving.release.experiments.traffic import failing_canary, requests
from tests.serving.served import eventually

__all__ = ["candidates", "empty_database", "engine", "place"]
POLICY = {"ramp": [0.5], "min_users": 100, "settle_s": 0, "window_s": 0, "error_margin": 0.5, "latency_ratio": 3.0}


def asked(place: Place, endpoint: str, name: str, users: range) -> set[str]:
    """Route these users; returns the digests of the packages that answered."""
    url = place.home.experiments_url
    states, events = ExperimentStore(url), EventStore(url)
    with ExitStack() as stack:
        stack.callback(events.close)
        stack.callback(states.close)
        clients = {
            arm: stack.enter_context(GeneratorClient(endpoint, model=model))
            for arm, model in (("champion", "generator"), ("canary", "canary"))
        }
        recorder = stack.enter_context(Recorder(events, states.current(name).experiment))
        router = Router(stack.enter_context(StoredSplit(states, name)), clients, recorder, events)
        return {router.generate(f"user-{user}", "a red seven", seed=user).result.version for user in users}


def answers(endpoint: str) -> bool:
    try:
        with GeneratorClient(endpoint, model="canary", retries=0) as client:
            return bool(client.generate("a red seven").version)
    except GeneratorError:
        return False


def is_served(place: Place, name: str) -> bool:
    """Whether `emuflow serve` has said so."""
    states = ExperimentStore(place.home.experiments_url)
    try:
        return states.current(name).experiment.arm("canary").served
    finally:
        states.close()


def test_a_canary_is_served_watched_and_then_promoted(place):
    second = staged(place, canary="required", canary_policy=Policy.parse(POLICY))
    first = str(place.champion)
    chain = Chain(place.root)
    assert "emuflow canary start" in chain.call("promote", "2", "--to", "champion", code=1)
    assert "no canary was started" in chain.call("canary", "status", code=2)
    with serving(place) as endpoint:
        said = chain.call("canary", "start", "2", "--name", "spring", "--why", "it passed its gate")
        assert second[:12] in said and "50% of the users" in said
        asked(place, endpoint, "spring", range(60))  # perhaps before it is loaded: no request fails
        eventually(lambda: is_served(place, "spring"), timeout_s=120)
        assert answers(endpoint)
        assert asked(place, endpoint, "spring", range(60)) == {first, second}
        told = json.loads(chain.call("canary", "status", "--json"))["arms"]
        assert (told[1]["status"], told[0]["errors"], told[1]["errors"]) == ("running", 0, 0)
        assert "Canary spring" in chain.call("canary", "status")
        for start in range(60, 2000, 200):
            asked(place, endpoint, "spring", range(start, start + 200))
            found = json.loads(chain.call("canary", "status", "spring", "--json"))
            if found["arms"][1]["status"] == "passed":
                break
        assert found["arms"][1]["status"] == "passed", found["findings"]
        assert found["arms"][1]["requests"] > 50
        proven = {each["metric"]: each["verdict"] for each in found["findings"] if each["scope"] == "new users"}
        assert proven == {"error_rate": "not worse", "latency_ratio": "not worse"}
        chain.call("promote", "2", "--to", "champion")
        eventually(lambda: not answers(endpoint), timeout_s=120)  # it is the champion now, and no canary
    assert place.champion == second and "canary 'spring'" in chain.history()["champions"][0]["reason"]


def test_a_person_changes_its_share_and_ends_it(place, candidates):
    chain = Chain(place.root)
    name = candidates[1][:12]
    chain.call("canary", "start", "2")
    assert "20% of the users" in chain.call("canary", "share", name, "0.2", "--why", "more of them")
    assert "0% of the users, stopped" in chain.call("canary", "stop", name, "--why", "it draws ghosts")
    assert "was stopped" in chain.call("canary", "share", name, "0.2", "--why", "again", code=2)
    found = json.loads(chain.call("canary", "status", "--json"))
    assert (found["name"], found["reason"], found["arms"][1]["status"]) == (name, "it draws ghosts", "stopped")


def test_fault_24_a_server_that_runs_stops_a_failing_canary_by_itself(place):
    staged(place, canary_policy=Policy.parse({**POLICY, "error_margin": 0.005}))
    chain = Chain(place.root)
    chain.call("canary", "start", "2", "--name", "spring")
    url = place.home.experiments_url
    states, events = ExperimentStore(url), EventStore(url)
    with serving(place) as endpoint:
        assert asked(place, endpoint, "spring", range(5)) <= {
            place.champion,
            states.current("spring").experiment.arm("canary").digest,
        }
        eventually(lambda: is_served(place, "spring"), timeout_s=120)
        split = HashSplit(states.current("spring").experiment)
        events.write(requests(split, range(1000), answer=failing_canary(0.5), start=time.time() - 2000))
        eventually(lambda: states.current("spring").experiment.arm("canary").status == "stopped", timeout_s=120)
        eventually(lambda: not answers(endpoint), timeout_s=120)
    record = states.current("spring")
    assert record.actor == "canary" and "error_rate" in record.reason
    states.close()
    events.close()

"""A promotion or a rollback that is killed before any of its writes: afterwards, everything comes to agree again."""

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient
from serving.deployment import read_state, reconcile_if_running
from serving.release.verification import verify_audit_log
from serving.repository import ModelRepository
from serving.supervisor import serve
from tests.components.promote.killing import Victims
from tests.components.promote.place import SETTINGS, Candidate, Place
from tests.serving.served import eventually

SELDOM_S, OFTEN_S = 3600.0, 0.1
KILLED = -9


@dataclass
class Scene:
    """A running server, a state to begin each try with, and what the command that is killed comes to."""

    place: Place
    command: str
    candidate: Candidate
    before: str
    after: str
    rows: int
    """Of the champion, when all is done."""

    def keep(self) -> None:
        """Keep the database and what this machine remembers of the audit log."""
        copy_database(self.place.root / "mlflow" / "mlflow.db", self.place.root / "kept.db")
        shutil.copytree(self.place.home.keys / "audit", self.place.root / "kept")

    def begin(self) -> None:
        """As it was kept, with the server at the package of before."""
        copy_database(self.place.root / "kept.db", self.place.root / "mlflow" / "mlflow.db")
        shutil.rmtree(self.place.home.keys / "audit")
        shutil.copytree(self.place.root / "kept", self.place.home.keys / "audit")
        reconcile_if_running(self.place.home.serving, self.place.home.packages, self.before)
        assert self.served() == self.before

    def arguments(self) -> dict[str, str]:
        home = self.place.home
        return {
            "url": self.place.url,
            "run_id": self.place.run_id,
            "candidate": str(self.candidate.folder),
            "package_store": str(home.packages),
            "key_folder": str(home.keys),
            "serving": str(home.serving),
        }

    def state(self) -> str | None:
        """What the server's state says that it serves."""
        state = read_state(self.place.home.serving)
        return state.digest if state else None

    def served(self) -> str:
        """What it does serve."""
        state = read_state(self.place.home.serving)
        assert state is not None
        with GeneratorClient(state.grpc_endpoint) as client:
            return client.generate("a red seven").version

    def agree(self) -> bool:
        """Whether store, alias, files, state and server all have the package of after, and the log is complete."""
        place = self.place
        store = place.store
        version = place.alias()
        shown = {
            place.champion,
            place.version(version).tags["package_digest"] if version else None,
            ModelRepository(place.home.serving / "repository", place.home.keys).digest("generator"),
            self.state(),
            self.served(),
        }
        done = shown == {self.after} and store.unfinished_rollback() is None
        store.close()
        return done

    def check_record(self) -> None:
        assert len(self.place.store.history("champion")) == self.rows
        assert verify_audit_log(self.place.url, self.place.home.keys).findings == ()
        versions = self.place.client.search_model_versions(f"name = '{SETTINGS.registered_model}'")
        assert len({version.tags["package_digest"] for version in versions}) == len(versions) == 2


def copy_database(source: Path, target: Path) -> None:
    """Into the file that others have open, who see it at their next transaction."""
    with closing(sqlite3.connect(source)) as copied, closing(sqlite3.connect(target, timeout=30)) as written:
        copied.backup(written)


@contextmanager
def serving(place: Place, poll_s: float) -> Iterator[None]:
    """A server that asks the release store every `poll_s`."""

    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=serve,
        kwargs={
            "folder": place.home.serving,
            "package_store": place.home.packages,
            "key_folder": place.home.keys,
            "desired": lambda: place.champion,
            "stop": stop,
            "poll_s": poll_s,
            "on_change": lambda _: ready.set(),
        },
    )
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        stop.set()
        thread.join(60)


@pytest.fixture
def scene(place: Place, request: pytest.FixtureRequest) -> Scene:
    first = place.candidate("run-1").judged()
    first.promoted()
    second = place.candidate("run-2").judged(champion=first.int8)
    if request.param == "promote":
        made = Scene(place, "promote", second, first.int8, second.int8, rows=2)
    elif request.param == "advance":
        second.promoted(to="candidate")
        made = Scene(place, "advance", second, first.int8, second.int8, rows=2)
    else:
        second.promoted()
        made = Scene(place, "rollback", second, second.int8, first.int8, rows=3)
    made.keep()
    return made


@pytest.fixture(scope="module")
def victims() -> Iterator[Victims]:
    with Victims() as running:
        yield running


@pytest.mark.parametrize("scene", ["promote", "advance", "rollback"], indirect=True)
def test_fault_20_killed_at_any_write_the_same_command_again_brings_all_to_agree(scene: Scene, victims: Victims):
    with serving(scene.place, SELDOM_S):
        scene.begin()
        code, writes = victims.run(scene.command, scene.arguments())
        assert code == 0 and scene.agree()
        scene.check_record()
        expected = {
            "load generator",
            "rename to generator",
            "rename to state.json",
            "commit UPDATE emuflow_audit_head SET",
        }
        assert expected <= set(writes), writes
        for number, name in enumerate(writes):
            scene.begin()
            code, done = victims.run(scene.command, scene.arguments(), number)
            assert (code, done) == (KILLED, writes[:number]), name
            if not scene.agree():
                code, _ = victims.run(scene.command, scene.arguments())
                assert code == 0, f"killed before '{name}' ({number}), it cannot be repeated"
            assert scene.agree(), f"killed before '{name}' ({number})"
            scene.check_record()


@pytest.mark.parametrize("scene", ["promote", "rollback"], indirect=True)
def test_fault_20_killed_at_any_write_the_server_comes_to_what_was_decided_by_itself(scene: Scene, victims: Victims):
    with serving(scene.place, OFTEN_S):
        scene.begin()
        _, writes = victims.run(scene.command, scene.arguments())
        commits = [number for number, name in enumerate(writes) if "emuflow_audit_head" in name]
        decision = commits[0] if scene.command == "rollback" else commits[-1]
        for number in range(decision, len(writes)):
            scene.begin()
            victims.run(scene.command, scene.arguments(), number)
            wanted = scene.before if number == decision else scene.after
            assert scene.place.champion == wanted
            eventually(lambda wanted=wanted: scene.state() == wanted and scene.served() == wanted)


@pytest.mark.parametrize("scene", ["promote"], indirect=True)
def test_fault_20_what_was_loaded_by_a_promotion_that_was_killed_then_is_rolled_back(scene: Scene, victims: Victims):
    """Nobody had written down that it serves: the rollback must not believe that the old package still does."""
    with serving(scene.place, SELDOM_S):
        scene.begin()
        _, writes = victims.run(scene.command, scene.arguments())
        scene.begin()
        loaded = writes.index("load generator") + 1
        assert victims.run(scene.command, scene.arguments(), loaded)[0] == KILLED and scene.served() == scene.after
        assert victims.run("rollback", scene.arguments())[0] == 0
        assert scene.place.champion == scene.state() == scene.served() == scene.before

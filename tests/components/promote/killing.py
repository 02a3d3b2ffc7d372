"""A process that promotes (as the pipeline or by hand) or rolls back, and is killed (SIGKILL) right before its n-th write.

`python -m tests.components.promote.killing` reads one JSON line for each try and forks a child for it, so that the slow
imports happen once. A write is a commit of a changed database (aliases are in one, too), a file that gets its name
(MLflow's artifacts do, too), or a model that Triton is told to load; what stood before it stands, and nothing after it has happened.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import event
from sqlalchemy.engine import Engine

from components.promote.advance import advance
from components.promote.evidence import exported_digest
from components.promote.promote import promote
from components.promote.rollback import roll_back
from components.promote.settings import PromotionSettings
from serving.control import ModelControl

NEVER = 10_000


class Victims:
    """The process that forks them."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, command: str, arguments: dict[str, str], kill_at: int = NEVER) -> tuple[int, list[str]]:
        """Run `command` until its write number `kill_at`. Returns the exit code and the names of the writes before it."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([command, arguments, kill_at]) + "\n")
        self._process.stdin.flush()
        code, writes = json.loads(self._process.stdout.readline())
        return code, writes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=120)


class Writes:
    """Counts the writes of this process, tells each by name, and kills it before number `kill_at`."""

    def __init__(self, kill_at: int, tell: int):
        self._kill_at, self._tell, self._count = kill_at, tell, 0
        event.listen(Engine, "before_cursor_execute", self._statement)
        event.listen(Engine, "commit", self._commit)
        sys.addaudithook(self._audit)
        load = ModelControl.load

        def counted(control: ModelControl, name: str) -> None:
            self.write(f"load {name}")
            load(control, name)

        ModelControl.load = counted

    def write(self, name: str) -> None:
        if self._count == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self._count += 1
        os.write(self._tell, f"{name}\n".encode())

    def _statement(self, connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.split()[0].upper() in ("INSERT", "UPDATE", "DELETE"):
            connection.info["written"] = " ".join(statement.split()[:3])

    def _commit(self, connection: Any) -> None:
        if written := connection.info.pop("written", None):
            self.write(f"commit {written}")

    def _audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "os.rename":
            self.write(f"rename to {Path(os.fsdecode(arguments[1])).name}")


def _run(command: str, arguments: dict[str, Any]) -> None:
    settings = PromotionSettings(actor="tester")
    paths = {name: Path(arguments[name]) for name in ("package_store", "key_folder", "serving")}
    urls = {"release_url": arguments["url"], "tracking_uri": arguments["url"]}
    judged = {name: Path(arguments["candidate"]) / name for name in ("verdict", "exported")}
    if command == "promote":
        promote(settings, **judged, **paths, **urls, run_id=arguments["run_id"])
    elif command == "advance":
        alone = {"approval": None, "experiments_url": None, "actor": "tester"}
        digest, verdict = exported_digest(judged["exported"]), judged["verdict"]
        advance(settings.registered_model, settings, digest, "champion", verdict, **alone, **paths, **urls)
    else:
        roll_back(settings.registered_model, None, actor="tester", reason="it draws ghosts", **paths, **urls)


def _fork(command: str, arguments: dict[str, Any], kill_at: int) -> tuple[int, list[str]]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            os.dup2(2, 1)
            Writes(kill_at, writing)
            _run(command, arguments)
            code = 0
        except Exception as error:  # noqa: BLE001 - it must not go on as the process that forks
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        names = told.read().splitlines()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), names


if __name__ == "__main__":
    import mlflow.store.model_registry.sqlalchemy_store
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 - imported once, before the first fork

    for line in sys.stdin:
        print(json.dumps(_fork(*json.loads(line))), flush=True)

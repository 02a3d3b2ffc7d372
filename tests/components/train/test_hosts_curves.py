"""The ranks of other hosts log to the step's MLflow run, and what is secret of it is on no command line and in no log."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.errors import TrainingError, UsageError
from components.train.curves import Curves
from components.train.hosts import HostsLauncher
from components.train.job import Job
from components.train.node import read_variables
from tests.components.train.test_nodes import copied_job, here

TOKEN = "no-command-line-holds-this"


@dataclass
class Tracking:
    """A tracking server that takes every request."""

    address: str = ""
    tokens: set[str | None] = field(default_factory=set)
    points: list[dict[str, Any]] = field(default_factory=list)
    told_by_commands: list[list[str]] = field(default_factory=list)
    """Command lines that held the token while a request was answered: the ranks and what started them live then."""

    def take(self, token: str | None, content: dict[str, Any]) -> None:
        self.tokens.add(token)
        self.points.append(content)
        commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert any("components.train.node" in command for command in commands)
        self.told_by_commands += [command for command in commands if TOKEN in " ".join(command)]


@pytest.fixture
def tracking() -> Iterator[Tracking]:
    taken = Tracking()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            taken.take(self.headers["Authorization"], {"path": self.path, **content})
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        taken.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield taken
        server.shutdown()
        thread.join()


@pytest.fixture
def job(uninterrupted: Path, tmp_path: Path) -> Job:
    """One rank on each host."""
    copied = copied_job(uninterrupted, tmp_path)
    alone = copied.model_copy(update={"training": copied.training.model_copy(update={"processes": 1})})
    alone.write(tmp_path / "job.json")
    return alone


def leave_a_curve(job: Job, folder: Path) -> None:
    ranks = replace(job.ranks(folder / "job.json"), module="tests.components.train.curve_of_rank_0")
    HostsLauncher(here(folder)).run(ranks)


def test_rank_0_logs_to_the_steps_run_with_the_steps_token(
    tracking: Tracking, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.address)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", TOKEN)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_RUN_ID", "the-run-of-train")
    leave_a_curve(job, tmp_path)
    (point,) = tracking.points
    assert (point["path"], point["run_id"]) == ("/api/2.0/mlflow/runs/log-batch", "the-run-of-train")
    assert [(each["key"], each["value"]) for each in point["metrics"]] == [("train/coarse_loss", 2.0)]
    assert tracking.tokens == {f"Bearer {TOKEN}"}
    assert not tracking.told_by_commands
    out, err = capfd.readouterr()
    assert TOKEN not in out + err and "no MLflow run" not in out + err


@pytest.mark.slow
def test_without_a_run_one_line_of_the_log_says_so(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    leave_a_curve(job, tmp_path)
    out, err = capfd.readouterr()
    assert (out + err).count("no MLflow run") == 1
    assert (job.work / "curves.jsonl").is_file()


def test_whoever_trains_on_one_machine_without_mlflow_is_not_told_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    for nodes, lines in (("1", 0), ("2", 1)):
        monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
        Curves(tmp_path / "curves.jsonl", 0)
        assert caplog.text.count("no MLflow run") == lines


def test_many_variables_for_a_node_that_reads_none_are_no_other_error(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_LONG", "x" * 100_000)  # more than a pipe holds
    with pytest.raises(TrainingError, match=r"the node on second ended with an error \(exit code 7\)"):
        HostsLauncher(here(tmp_path, ends_at_once="second")).run(job.ranks(tmp_path / "job.json"))


@pytest.mark.parametrize("line", ["", "MLFLOW_TRACKING_TOKEN=secret\n", '["secret"]\n', '{"secret": 1}\n'])
def test_another_first_line_is_refused_and_not_told(line: str) -> None:
    with pytest.raises(UsageError, match="no JSON object") as refused:
        read_variables(line)
    assert "secret" not in str(refused.value)

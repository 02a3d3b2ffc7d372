"""The harness: what a step leaves in the run folder, and what it leaves to the platform."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from common.errors import DataError
from components.step import RUN_FOLDER_VARIABLE, STEP_RUNS_VARIABLE, describe_error, result_values

_BODY = """
import json, os, subprocess, sys
from dataclasses import dataclass
from components.step import step

@dataclass(frozen=True)
class Result:
    rows: int
    loss: float
    reasons: dict
    note: str

with step("curate", '{{"api_key": "hunter2", "minimum": 3}}', curated={output!r}) as record:
    print("from python")
    subprocess.run(["echo", "from a child"])
    os.makedirs({output!r})
    {middle}
    record.result = Result(7, float("nan"), {{"small": 2}}, os.environ.get("MLFLOW_RUN_ID", ""))
print("after", file=sys.__stdout__)
"""


def run_body(folder: Path, middle: str = "pass") -> subprocess.CompletedProcess[str]:
    output = str(folder / "artifacts" / "curated")
    environment = os.environ | {RUN_FOLDER_VARIABLE: str(folder), STEP_RUNS_VARIABLE: '{"curate": "run-of-curate"}'}
    return subprocess.run(
        [sys.executable, "-c", _BODY.format(output=output, middle=middle)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_step_leaves_its_log_record_and_output(tmp_path):
    done = run_body(tmp_path)
    assert done.returncode == 0, (tmp_path / "logs" / "curate.log").read_text()
    assert done.stdout == ""
    log = (tmp_path / "logs" / "curate.log").read_text()
    assert "from python" in log and "from a child" in log
    record = json.loads((tmp_path / "steps" / "curate.json").read_text())
    assert record["status"] == "succeeded"
    assert record["seconds"] > 0
    assert record["result"] == {"rows": 7, "loss": "nan", "reasons.small": 2, "note": "run-of-curate"}
    assert (tmp_path / "curated").resolve() == (tmp_path / "artifacts" / "curated").resolve()


def test_fault_25_a_secret_in_a_steps_settings_is_not_in_its_record(tmp_path):
    run_body(tmp_path)
    text = (tmp_path / "steps" / "curate.json").read_text()
    assert "hunter2" not in text
    assert json.loads(text)["settings"] == {"api_key": "***", "minimum": 3}


def test_a_steps_log_has_its_own_lines_and_the_libraries_warnings(tmp_path):
    body = "import logging; chatty = logging.getLogger('onnxscript.optimizer'); chatty.info('a decision'); "
    body += "chatty.warning('a warning'); logging.getLogger('components.curate').info('kept 7 of 9')"
    run_body(tmp_path, body)
    log = (tmp_path / "logs" / "curate.log").read_text()
    assert "kept 7 of 9" in log and "a warning" in log and "a decision" not in log


def test_a_failure_is_recorded_and_passed_on(tmp_path):
    done = run_body(
        tmp_path,
        "from common.errors import DataError; raise DataError('nothing readable', where='a.tar', fix='look at it')",
    )
    assert done.returncode != 0
    record = json.loads((tmp_path / "steps" / "curate.json").read_text())
    assert record["status"] == "failed"
    assert record["error"]["type"] == "DataError"
    assert (record["error"]["what"], record["error"]["fix"]) == ("nothing readable", "look at it")
    assert "nothing readable" in (tmp_path / "logs" / "curate.log").read_text()
    assert not (tmp_path / "curated").exists()


def test_without_a_run_folder_the_output_stays_on_standard_output(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k not in (RUN_FOLDER_VARIABLE, "MLFLOW_RUN_ID")}
    body = _BODY.format(output=str(tmp_path / "out"), middle="pass")
    done = subprocess.run([sys.executable, "-c", body], env=environment, capture_output=True, text=True, check=True)
    assert "from python" in done.stdout and "from a child" in done.stdout


def test_fault_25_an_errors_message_is_redacted():
    described = describe_error(DataError("no answer from postgresql://u:hunter2@db/x", fix="start it"))
    assert "hunter2" not in json.dumps(described)


@dataclass(frozen=True)
class _Result:
    path: Path
    ratio: float
    accepted: bool
    name: str
    by_reason: dict[str, int]
    rows: list[int]


def test_only_plain_values_of_a_result_are_kept():
    result = _Result(Path("x"), 0.5, True, "n", {"small": 1}, [1])
    assert result_values(result) == {"ratio": 0.5, "accepted": True, "name": "n", "by_reason.small": 1}
    assert result_values(None) == {}


@pytest.mark.parametrize("value", [_Result, "text", 3])
def test_what_is_no_dataclass_has_no_values(value):
    assert result_values(value) == {}


def test_fault_25_a_chain_of_errors_that_tells_a_password_is_not_printed(tmp_path):
    middle = "raise ValueError('asked http://u:hunter2@host/api') from OSError('http://u:hunter2@host/api is away')"
    done = run_body(tmp_path, middle)
    assert done.returncode != 0
    log = (tmp_path / "logs" / "curate.log").read_text()
    assert "http://u:***@host/api" in log and "hunter2" not in log + done.stdout + done.stderr


def test_fault_27_sigterm_unwinds_a_step(tmp_path):
    marker = tmp_path / "unwound"
    middle = f"""import contextlib, pathlib, signal
    with contextlib.ExitStack() as stack:
        stack.callback(pathlib.Path({str(marker)!r}).touch)
        signal.raise_signal(signal.SIGTERM)"""
    done = run_body(tmp_path, middle)
    assert done.returncode == 143
    assert marker.exists()
    assert json.loads((tmp_path / "steps" / "curate.json").read_text())["status"] == "failed"

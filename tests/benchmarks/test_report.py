"""The one form of a benchmark's result."""

import io
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console

from benchmarks.report import Check, Report, Row, family_cpu_s
from components.benchmark.measurements import ProcessorShares
from tests.components.benchmark.test_neighbours import busy_cores


@pytest.mark.parametrize(
    ("value", "at_least", "ok", "reached"),
    [(5.0, True, True, False), (4.9, True, False, False), (20.0, True, True, True), (5.0, False, True, True)],
)
def test_a_check_knows_its_bound_and_its_aim(value, at_least, ok, reached):
    check = Check("speedup", value, 5, 20, 25, at_least=at_least)
    assert (check.ok, check.reached) == (ok, reached)


def test_what_is_only_reported_misses_nothing():
    check = Check("variety_vs_real", 0.1, None, 0.9, 25)
    assert check.ok and not check.reached
    assert check.describe()["bound"] is None


def test_an_aim_that_takes_more_than_the_value_is_not_reached_by_it():
    aims = Check("cost", 0.1, 0.3, 0.1, 25, at_least=False)
    withheld = replace(aims, aim_withheld="variety is lost")
    assert aims.reached and "aim_withheld" not in aims.describe()
    assert not withheld.reached and withheld.ok and withheld.describe()["aim_withheld"] == "variety is lost"
    shown = io.StringIO()
    report = Report("decode", "", checks=[withheld, replace(withheld, bound=None), replace(withheld, value=0.5)])
    report.finish(Console(file=shown, width=200), None)
    for told in (" ok, not the aim: variety is lost", " not the aim: variety", "missed, not the aim: variety"):
        assert told in shown.getvalue()


def test_the_json_form_and_the_tables(tmp_path):
    report = Report("decode", "emuflow bench decode")
    report.rows.append(Row("progressive", 2.5, 3.0, 0.95, 3000, {"variety": 0.6}))
    report.checks += [Check("fast", 8.0, 5, 20, 25, low=7.5, high=8.5), Check("kept", 0.9, 0.987, 1, 3000)]
    shown = io.StringIO()
    assert not report.finish(Console(file=shown, width=200), tmp_path / "decode.json")
    assert "progressive" in shown.getvalue() and "missed" in shown.getvalue() and "ok" in shown.getvalue()
    content = json.loads((tmp_path / "decode.json").read_text())
    assert {"benchmark", "commit", "command", "machine", "rows", "checks"} <= content.keys()
    assert content["rows"] == [
        {"name": "progressive", "median_ms": 2.5, "p95_ms": 3.0, "accuracy": 0.95, "n": 3000, "variety": 0.6}
    ]
    assert [check["ok"] for check in content["checks"]] == [True, False]
    assert content["checks"][0]["low"] == 7.5 and content["machine"]["cores"] >= 1


def finished(report: Report, tmp_path) -> tuple[str, dict]:
    shown, file = io.StringIO(), tmp_path / "result.json"
    report.finish(Console(file=shown, width=200), file)
    return shown.getvalue(), json.loads(file.read_text())


def test_times_beside_busy_processes_come_with_a_warning(tmp_path):
    report = Report("decode", "emuflow bench decode")
    with busy_cores(), report.timed():
        time.sleep(0.6)
    shown, content = finished(report, tmp_path)
    assert content["neighbours_share"] > 0.85
    assert f"other processes had up to {content['neighbours_share']:.0%} of the processors" in shown


@pytest.mark.parametrize(
    ("timings", "share", "said"),
    [
        ([ProcessorShares(others=0.02, idle=0.0), ProcessorShares(others=0.1, idle=0.4)], 0.1, None),
        ([ProcessorShares(others=0.4, idle=0.0), ProcessorShares(others=0.02, idle=0.5)], 0.4, "up to 40%"),
        ([ProcessorShares(others=0.02, idle=0.0), None], None, "not known"),
    ],
)
def test_the_worst_stretch_of_timed_rounds_counts(tmp_path, timings, share, said):
    shown, content = finished(Report("scaling", "", timings=timings), tmp_path)
    assert content["neighbours_share"] == share
    assert (said in shown) if said else ("warning" not in shown)


def test_where_nothing_is_timed_nothing_is_told_of_neighbours(tmp_path):
    shown, content = finished(Report("soak", ""), tmp_path)
    assert "neighbours_share" not in content and "warning" not in shown


def test_processes_that_a_benchmark_started_are_its_own_also_where_they_have_ended():
    works = "import time\nwhile time.process_time() < 0.6: pass\nprint(flush=True)\ninput()"
    before = family_cpu_s()
    with subprocess.Popen([sys.executable, "-c", works], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert family_cpu_s() - before > 0.5
        process.communicate(b"\n")
    assert family_cpu_s() - before > 0.5

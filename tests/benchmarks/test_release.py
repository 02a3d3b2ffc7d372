"""`emuflow bench release`: its form on a real server and real races, and that what it is to find is found."""

import io
import json

from rich.console import Console

from benchmarks import experiments, release
from benchmarks.races import Races
from benchmarks.rollbacks import Rollbacks
from common.home import Home
from serving.release.verification import Finding, Verification
from tests.engines import write_engine
from tests.packages import build

BOUNDS = {"rollback_seconds": 10, "rollback_failed_requests": 0, "promotion_races_lost": 0, "audit_findings": 0}
WHOLE = Verification(9, 4, (), ())


def packages(home: Home) -> tuple[str, str]:
    engine = write_engine(home.root / "engine")
    int8, fp32 = (build(engine, home.packages, home.keys, precision).name for precision in ("int8", "fp32"))
    return int8, fp32


def test_every_row_and_every_promise_is_in_the_result(tmp_path):
    file = tmp_path / "release.json"
    few = experiments.Amount(null_tests=20, users=1000)
    amount = release.Amount(rollbacks=1, rollbacks_saturated=1, rounds=3, tests=few)
    held = release.run(Console(file=io.StringIO()), file, amount, packages)
    result = json.loads(file.read_text())
    checks = {check["name"]: check for check in result["checks"]}
    assert {name: check["bound"] for name, check in checks.items()} == BOUNDS | {"ab_false_stop_rate": 0.05}
    assert [checks[name]["value"] for name in BOUNDS][1:] == [0, 0, 0], result
    assert checks["promotion_races_lost"]["n"] == 60 and checks["rollback_failed_requests"]["n"] > 20
    answered, ended, saturated, race, null = result["rows"]
    assert checks["ab_false_stop_rate"]["value"] == null["stopped"] and null["n"] == 20
    assert 0 < answered["median_ms"] <= answered["largest_ms"] == 1000 * checks["rollback_seconds"]["value"]
    assert answered["n"] == ended["n"] == saturated["n"] == 1 and race["n"] == 60
    assert held == all(check["ok"] for check in checks.values())


def missed(rollbacks: Rollbacks, races: Races, log: Verification = WHOLE) -> set[str]:
    calm = Rollbacks([1.0], [1.0], requests=50)
    found = {check.name for check in release.checks(rollbacks, calm, races, [log]) if not check.ok}
    if rollbacks.errors or rollbacks.late:  # a request is as lost under a saturated server
        assert found == {check.name for check in release.checks(calm, rollbacks, races, [log]) if not check.ok}
    return found


def test_what_goes_wrong_is_a_missed_bound():
    fine, fair = Rollbacks([1.0, 2.0], [3.0, 3.0], requests=50), Races(20, 2, 1.0, {0: 1, 1: 1}, refused=38)
    assert missed(fine, fair) == set()
    assert missed(Rollbacks([1.0, 11.0], [12.0, 12.0]), fair) == {"rollback_seconds"}
    assert missed(Rollbacks([1.0], [1.0], late=1), fair) == {"rollback_failed_requests"}
    assert missed(Rollbacks([1.0], [1.0], errors=["INTERNAL: once"]), fair) == {"rollback_failed_requests"}
    two_winners = Races(20, 2, 1.0, {0: 2, 1: 1}, refused=37)
    no_winner = Races(20, 2, 1.0, {1: 1}, refused=39)
    no_answer = Races(20, 2, 1.0, {0: 1, 1: 1}, refused=37, errors=["OperationalError: locked"])
    for unfair in (two_winners, no_winner, no_answer):
        assert unfair.lost == 1 and missed(fine, unfair) == {"promotion_races_lost"}
    altered = Verification(9, 4, (), (Finding("entry 3", "it was altered"),))
    assert missed(fine, fair, altered) == {"audit_findings"}

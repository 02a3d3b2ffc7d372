"""What the quickstart promises: a first champion, and candidates that are worse or slower turned away.

Each run is whole; together they take about a quarter of an hour on two cores.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.pipelines.chain import Chain

pytestmark = pytest.mark.slow
TIMEOUT_S = 1200


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return Chain(tmp_path_factory.mktemp("quickstart") / "runs", timeout_s=TIMEOUT_S)


@pytest.fixture(scope="module")
def champion(chain: Chain) -> dict[str, Any]:
    chain.call("run")
    return chain.status()


def checks(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in status["last_run"]["verdict"]["checks"]}


def test_the_first_run_ends_with_a_champion_that_draws_what_it_is_told(champion):
    assert champion["last_run"]["verdict"]["result"] == "PASS", champion["last_run"]["verdict"]["reasons"]
    assert champion["champion"]["digest"] == champion["last_run"]["candidate"]
    found = checks(champion)
    assert found["accuracy_int8"]["value"] >= 0.90 and found["accuracy_int8"]["n"] >= 500
    assert found["accuracy_loss_int8"]["value"] <= 0.01 and found["accuracy_loss_int8"]["n"] >= 500
    assert found["block_bytes_ratio"]["value"] <= 0.27
    assert champion["last_run"]["peak_memory_mb"] <= 6144
    assert Path(champion["last_run"]["paths"]["report"]).is_file()


@pytest.mark.parametrize(
    ("override", "kinds"),
    [("training.steps=60", {"quality"}), ("decoding.coarse_steps=24", {"latency"})],
)
def test_a_worse_or_slower_candidate_is_turned_away(chain, champion, override, kinds):
    chain.call("run", "--set", override)
    after = chain.status()
    assert after["last_run"]["verdict"]["result"] == "FAIL"
    failed = {check["kind"] for check in checks(after).values() if check["result"] == "FAIL"}
    assert kinds <= failed
    assert after["champion"] == champion["champion"]

"""Twenty promoters at once, fifty times: one winner a round, and an audit log that has every attempt."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.races import race
from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log

PROMOTERS, ROUNDS = 20, 50


@pytest.mark.parametrize("database", ["url", "postgresql_url"])
def test_fault_19_of_twenty_concurrent_promoters_one_wins_each_round(
    request: pytest.FixtureRequest, release_keys: Path, database: str
) -> None:
    url = request.getfixturevalue(database)
    races = race(url, release_keys, promoters=PROMOTERS, rounds=ROUNDS)
    assert not races.errors
    assert races.winners == dict.fromkeys(range(ROUNDS), 1) and races.lost == 0
    store = ReleaseStore(url)
    champions = store.history("champion")
    assert [release.sequence for release in champions] == list(range(ROUNDS, 0, -1))
    for later, earlier in pairwise(champions):
        assert later.previous_digest == earlier.digest
    assert [release.digest for release in store.history("staging")] == [release.digest for release in champions]
    actions = Counter(entry.parsed()["action"] for entry in store.audit_log())
    store.close()
    assert actions == {"opened": 1, "promotion": 2 * ROUNDS, "refusal": (PROMOTERS - 1) * ROUNDS}
    found = verify_audit_log(url, release_keys)
    assert found.findings == () and found.entries == sum(actions.values())

"""From events to units: one for each decision of chance, complete, and in the order of the users' coming."""

import numpy as np
import pytest

from serving.release.experiments.events import EventTable
from serving.release.experiments.policy import Policy
from serving.release.experiments.units import Units, find_units

LATER = 1e9
POLICY = Policy(window_s=10, settle_s=5, requests_per_user=2, recount_after_s=100)


def table(*rows: tuple[str, float, bool, float]) -> EventTable:
    """Of (user, time, on the challenger, share)."""
    none = np.full(len(rows), np.nan)
    return EventTable(
        user_hash=[row[0] for row in rows],
        time=np.array([row[1] for row in rows]),
        is_challenger=np.array([row[2] for row in rows], dtype=bool),
        share=np.array([row[3] for row in rows]),
        latency_ms=none,
        failed=np.zeros(len(rows), dtype=bool),
        vote=none,
    )


def units(*rows: tuple[str, float, bool, float], now: float = LATER, policy: Policy = POLICY) -> Units:
    return find_units(table(*rows), policy, now)


def test_a_users_first_requests_are_one_unit():
    found = units(
        ("a", 0, True, 0.2), ("b", 1, False, 0.2), ("a", 2, True, 0.2), ("a", 3, True, 0.2), ("a", 50, True, 0.2)
    )
    assert found.unit_of_row.tolist() == [0, 1, 0, -1, -1]  # two at most, and none after the window
    assert found.is_challenger.tolist() == [True, False] and found.probability.tolist() == [0.2, 0.2]
    assert found.means(np.array([1.0, 5.0, 2.0, 9.0, 9.0])).tolist() == [1.5, 5.0]


def test_a_user_counts_only_when_nothing_of_theirs_can_still_come():
    rows = [("a", 0.0, True, 0.2), ("b", 10.0, False, 0.2)]
    assert [len(units(*rows, now=now)) for now in (14, 15, 24, 25)] == [0, 1, 1, 2]


def test_after_a_share_has_grown_chance_decides_again_for_those_on_the_control():
    found = units(("a", 0, False, 0.05), ("b", 0, True, 0.05), ("a", 20, True, 0.2), ("b", 20, True, 0.2))
    assert found.is_challenger.tolist() == [False, True, True]  # b was on the challenger: nothing is left to chance
    assert found.probability == pytest.approx([0.05, 0.05, 0.15 / 0.95])
    assert not found.returning.any()


def test_after_a_share_has_shrunk_chance_decides_again_for_those_on_the_challenger():
    found = units(("a", 0, True, 0.4), ("b", 0, False, 0.4), ("a", 20, False, 0.1), ("b", 20, False, 0.1))
    assert found.probability == pytest.approx([0.4, 0.4, 0.25])
    assert found.is_challenger.tolist() == [True, False, False]


def test_nothing_is_learned_where_one_arm_has_everybody():
    assert len(units(("a", 0, False, 0.0), ("b", 0, False, 0.0))) == 0


def test_a_user_who_comes_again_is_measured_from_their_own_past():
    rows = [
        ("a", 0, True, 0.2),
        ("a", 99, True, 0.2),
        ("a", 100, True, 0.2),
        ("a", 250, True, 0.2),
        ("b", 260, False, 0.2),
    ]
    found = units(*rows)
    assert found.unit_of_row.tolist() == [0, -1, 1, 2, 3]
    assert found.previous.tolist() == [-1, 0, 1, -1]
    past = found.own_past(np.array([1.0, 3.0, 10.0, 4.0]))
    assert np.isnan(past[[0, 3]]).all() and past[1:3].tolist() == [1.0, 2.0]
    never = units(*rows, policy=POLICY.model_copy(update={"recount_after_s": None}))
    assert never.unit_of_row.tolist() == [0, -1, -1, -1, 1]


def test_requests_on_another_arm_within_a_window_count_for_neither():
    assert units(("a", 0, False, 0.05), ("a", 1, True, 0.2)).unit_of_row.tolist() == [0, -1]

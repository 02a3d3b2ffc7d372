"""When a refused package is due again."""

from itertools import pairwise

from serving.backoff import Backoff, Refusals


def test_the_pause_doubles_up_to_its_bound() -> None:
    pauses = [Backoff(first_s=5, longest_s=300).pause_s(failures) for failures in range(1, 10_000)]
    assert pauses[:8] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert all(before <= after <= 300 for before, after in pairwise(pauses))


def test_a_refused_package_is_due_after_its_pause_alone() -> None:
    refusals = Refusals(Backoff(first_s=60))
    assert refusals.due("a")
    assert (refusals.add("a"), refusals.add("a")) == (60, 120)
    assert not refusals.due("a") and refusals.due("b")
    at_once = Refusals(Backoff(first_s=0, longest_s=0))
    at_once.add("a")
    assert at_once.due("a")


def test_a_package_that_serves_or_is_wanted_anew_begins_again() -> None:
    refusals = Refusals(Backoff(first_s=60))
    refusals.add("a")
    refusals.forget("a")
    assert refusals.due("a") and refusals.add("a") == 60
    refusals.keep(("b", None))
    assert refusals.due("a")


def test_a_banned_package_is_never_due() -> None:
    refusals = Refusals(Backoff(first_s=0, longest_s=0))
    refusals.ban("a")
    refusals.keep(("a",))
    assert not refusals.due("a")

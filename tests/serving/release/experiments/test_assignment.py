"""Sticky assignment: even, independent between experiments, and with as few moves as possible."""

import hashlib

import numpy as np
import pytest

from common.errors import SettingsError, UsageError
from serving.release.experiments.assignment import HashSplit, point, user_hash
from serving.release.experiments.experiment import Arm, Experiment, canary

USERS = [f"user-{number}" for number in range(40_000)]
A, B = "a" * 64, "b" * 64


def split(share: float, salt: str = "some-salt") -> HashSplit:
    experiment = canary("e", control_digest=A, canary_digest=B, salt=salt)
    return HashSplit(experiment.with_arm(experiment.arm("canary").model_copy(update={"share": share})))


def on_canary(share: float, salt: str = "some-salt") -> np.ndarray:
    chosen = split(share, salt)
    return np.array([chosen.assign(user).is_challenger for user in USERS])


def abn(*shares: float) -> Experiment:
    arms = [Arm(name="control", digest=A, status="control")]
    arms += [Arm(name=f"b{number}", digest=B, share=share) for number, share in enumerate(shares)]
    return Experiment(name="abn", salt="some-salt", arms=tuple(arms))


def test_points_are_evenly_spread():
    points = np.array([point(user_hash("some-salt", user)) for user in USERS])
    counts, _ = np.histogram(points, bins=100, range=(0, 1))
    chi_squared = ((counts - 400) ** 2 / 400).sum()
    assert 60 < chi_squared < 149  # 99 degrees of freedom: outside with a probability of about 0.001 each


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_the_share_of_users_is_the_share_asked_for(share):
    found = on_canary(share).mean()
    assert abs(found - share) <= 4 * np.sqrt(share * (1 - share) / len(USERS))


def test_a_user_keeps_their_arm():
    assert [split(0.2).assign(user) for user in USERS[:100]] == [split(0.2).assign(user) for user in USERS[:100]]


def test_a_larger_share_keeps_its_users_and_moves_only_the_difference():
    before, after = on_canary(0.05), on_canary(0.2)
    assert (after | ~before).all()
    assert abs((before != after).mean() - 0.15) < 0.01


def test_another_salt_is_an_independent_assignment():
    one, other = on_canary(0.5, "salt-one"), on_canary(0.5, "salt-two")
    assert abs((one & other).mean() - 0.25) < 0.01


def test_a_change_of_one_challenger_moves_no_user_of_another_one():
    before, after = HashSplit(abn(0.1, 0.3)), HashSplit(abn(0.3, 0.3))
    arms = [(before.assign(user).arm, after.assign(user).arm) for user in USERS]
    assert {pair for pair in arms if pair[0] != pair[1]} == {("control", "b0")}
    assert abs(sum(arm == "b1" for _, arm in arms) / len(USERS) - 0.3) < 0.01
    assert abs(sum(arm == "b0" for _, arm in arms) / len(USERS) - 0.3) < 0.01


def test_the_plain_id_is_in_no_field():
    assigned = split(0.5).assign("anna@example.org")
    assert "anna" not in repr(assigned)
    assert assigned.user_hash == hashlib.sha256(b"some-salt\0anna@example.org").hexdigest()


def test_a_user_without_an_id_is_refused():
    with pytest.raises(UsageError, match="without an id"):
        split(0.5).assign("")


@pytest.mark.parametrize(("shares", "told"), [((0.5, 0.2), "below 0.5"), ((1.0,), "less than 1"), ((-0.1,), "greater")])
def test_shares_that_leave_no_control_are_refused(shares, told):
    with pytest.raises(ValueError, match=told):
        abn(*shares)


def test_an_arm_that_is_not_there_is_named():
    with pytest.raises(UsageError, match="no arm 'canarry'"):
        canary("e", control_digest=A, canary_digest=B).arm("canarry")


def test_an_unknown_key_in_a_stored_experiment_is_refused():
    with pytest.raises(SettingsError, match="did you mean 'salt'"):
        Experiment.parse(abn(0.1).model_dump() | {"sallt": "x"})

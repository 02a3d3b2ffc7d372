"""Who gets which arm: sticky, by a salted hash of the user's id, with shares that can change while it runs.

A user's hash is a point in [0, 1). With k challengers the line is cut into k lanes of equal width; in each lane the
first part belongs to its challenger and the rest to the control. A share that grows from 5% to 20% therefore keeps its
first 5% and takes users from the control alone, and no change of one challenger moves a user of another one.
"""

import hashlib
from dataclasses import dataclass
from typing import Protocol

from common.errors import UsageError
from serving.release.experiments.experiment import Experiment

_HASH_BITS = 53
"""As many as a double holds exactly."""


@dataclass(frozen=True)
class Assignment:
    """Which arm a user is on, and the random experiment behind it.

    In the lane of `challenger` a user who is seen for the first time gets the challenger with probability `share`, and
    the control otherwise. The statistics rest on that number, so it travels with every outcome.
    """

    experiment: str
    arm: str
    challenger: str
    share: float
    package_digest: str
    user_hash: str
    """64 hexadecimal digits; the plain id is kept nowhere."""

    @property
    def is_challenger(self) -> bool:
        return self.arm == self.challenger


class Split(Protocol):
    """Whatever splits the traffic: this process, or the router of a cluster."""

    def assign(self, user_id: str) -> Assignment:
        """The arm of a user now. Raises `UsageError` for an empty id."""
        ...


class HashSplit:
    """The split of an experiment as it is now, in this process."""

    def __init__(self, experiment: Experiment):
        self._experiment = experiment

    def assign(self, user_id: str) -> Assignment:
        experiment = self._experiment
        hashed = user_hash(experiment.salt, user_id)
        challengers = experiment.challengers
        lane, place = divmod(point(hashed) * len(challengers), 1)
        challenger = challengers[int(lane)]
        share = challenger.live_share * len(challengers)
        arm = challenger if place < share else experiment.control
        return Assignment(experiment.name, arm.name, challenger.name, share, arm.digest, hashed)


def user_hash(salt: str, user_id: str) -> str:
    """sha256 of the salt and the id, in hexadecimal digits. Raises `UsageError` for an empty id."""
    if not user_id:
        raise UsageError("a user without an id has no arm", fix="give the session's id where nobody is logged in")
    return hashlib.sha256(f"{salt}\0{user_id}".encode()).hexdigest()


def point(hashed: str) -> float:
    """The hash as a number in [0, 1)."""
    return (int(hashed[:16], 16) >> (64 - _HASH_BITS)) / 2**_HASH_BITS

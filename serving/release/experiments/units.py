"""From events to units: the small random experiments that the statistics count.

A unit is a user at the moment at which chance decides their arm, with their first requests from then on. That is their
first request of all; and after a share has changed, the first one at which what is known of their place on the line
leaves both arms possible. A user in the control at a share of 5% is then on the challenger at 20% with a probability of
(0.20 - 0.05) / (1 - 0.05). Requests of one user are alike, so to count each as a unit would prove too much.

A user who comes again later is no new experiment: their arm is known. But they can be compared with their own past, which
tells whether an arm has become worse. Such units are `returning` ones, and have no part in passing an arm.
"""

from dataclasses import dataclass, field

import numpy as np

from serving.release.experiments.events import EventTable
from serving.release.experiments.policy import Policy

_NONE = -1


@dataclass(frozen=True)
class Units:
    """The units of a table of events, in the order in which they began. Arrays [units], and one [rows]."""

    is_challenger: np.ndarray
    probability: np.ndarray
    """Of the challenger, when chance decided."""
    share: np.ndarray
    """Of the challenger in its lane at that time."""
    previous: np.ndarray
    """The same user's unit before this one on the same arm; -1 for a new one."""
    unit_of_row: np.ndarray
    """Which unit a row counts in; -1 for none."""

    def __len__(self) -> int:
        return len(self.probability)

    @property
    def returning(self) -> np.ndarray:
        return self.previous != _NONE

    def means(self, row_values: np.ndarray) -> np.ndarray:
        """[units] of values of rows [rows]. Every unit has at least one row."""
        counted = self.unit_of_row != _NONE
        units = self.unit_of_row[counted]
        sums = np.bincount(units, weights=row_values[counted], minlength=len(self))
        return sums / np.bincount(units, minlength=len(self))

    def own_past(self, unit_values: np.ndarray) -> np.ndarray:
        """[units] the mean of the same user's earlier units on the same arm; NaN for a new unit."""
        past, count = np.full(len(self), np.nan), np.zeros(len(self))
        for unit, before in enumerate(self.previous):
            if before != _NONE:
                earlier = past[before] * count[before] if count[before] else 0.0
                count[unit] = count[before] + 1
                past[unit] = (earlier + unit_values[before]) / count[unit]
        return past


@dataclass
class _User:
    """What is known of a user so far."""

    low: float = 0.0
    high: float = 1.0
    """Their place on the lane lies in [low, high)."""
    unit: int = _NONE
    until: float = -np.inf
    """The window of their newest unit."""
    rows: int = 0
    last: dict[bool, tuple[int, float]] = field(default_factory=dict)
    """By arm (is it the challenger?): their newest unit and when it began."""


def find_units(table: EventTable, policy: Policy, now: float) -> Units:
    """The units whose windows are over at `now` (seconds since 1970), and settled: none of them will change any more.

    Only so is their order that of their coming, whatever the arms do to the duration of a request.
    """
    newest_start = now - policy.window_s - policy.settle_s
    users: dict[str, _User] = {}
    units: list[tuple[bool, float, float, int]] = []
    unit_of_row = np.full(len(table), _NONE)
    rows = zip(table.user_hash, table.time.tolist(), table.is_challenger.tolist(), table.share.tolist(), strict=True)
    for row, (name, time, is_challenger, share) in enumerate(rows):
        user = users.get(name)
        if user is None:
            user = users[name] = _User()
        if time <= user.until:
            if user.rows < policy.requests_per_user and units[user.unit][0] == is_challenger:
                user.rows += 1
                unit_of_row[row] = user.unit
            continue
        if time > newest_start:
            continue
        probability = (share - user.low) / (user.high - user.low)
        if 0 < probability < 1:
            previous = _NONE
            user.low, user.high = (user.low, share) if is_challenger else (share, user.high)
        elif _comes_again(user, is_challenger, time, policy) and 0 < share < 1:
            previous, probability = user.last[is_challenger][0], share
        else:
            continue
        user.unit, user.until, user.rows = len(units), time + policy.window_s, 1
        user.last[is_challenger] = (user.unit, time)
        unit_of_row[row] = user.unit
        units.append((is_challenger, probability, share, previous))
    return Units(
        is_challenger=np.array([unit[0] for unit in units], dtype=bool),
        probability=np.array([unit[1] for unit in units], dtype=float),
        share=np.array([unit[2] for unit in units], dtype=float),
        previous=np.array([unit[3] for unit in units], dtype=int),
        unit_of_row=unit_of_row,
    )


def _comes_again(user: _User, is_challenger: bool, time: float, policy: Policy) -> bool:
    if policy.recount_after_s is None or is_challenger not in user.last:
        return False
    return time - user.last[is_challenger][1] >= policy.recount_after_s

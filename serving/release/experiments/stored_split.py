"""The split as the store has it: shares that change while it runs."""

from types import TracebackType
from typing import Self

from serving.release.experiments.assignment import Assignment, HashSplit
from serving.release.experiments.poller import Poller
from serving.release.experiments.states import ExperimentStore


class StoredSplit:
    """The split of the experiment `name` as the store has it, at most `poll_s` seconds old.

    While the store cannot be read, the split stays as it was.
    """

    def __init__(self, states: ExperimentStore, name: str, *, poll_s: float = 1.0):
        self._states, self._name = states, name
        self._split = HashSplit(states.current(name).experiment)
        self._poller = Poller(self.refresh, poll_s, f"reading the split of experiment '{name}'")

    def assign(self, user_id: str) -> Assignment:
        return self._split.assign(user_id)

    def refresh(self) -> None:
        """Read the store now."""
        self._split = HashSplit(self._states.current(self._name).experiment)

    def close(self) -> None:
        self._poller.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

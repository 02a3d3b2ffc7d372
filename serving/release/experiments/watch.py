"""What `emuflow serve` does for the canary that runs: it says whether its model is served, and looks at what is proven.

Both happen in a thread of their own. Whatever fails there is logged and tried again, and harms no request.
"""

import time
from collections.abc import Callable

from common.errors import ExperimentConflictError
from serving.release.experiments.canary import Canary, Champion
from serving.release.experiments.events import EventStore
from serving.release.experiments.experiment import CANARY_ARM
from serving.release.experiments.pairs import active_canary
from serving.release.experiments.poller import Poller
from serving.release.experiments.states import ExperimentStore, Record

_POLL_S = 0.5
_LARGEST_PART = 0.05
"""Of the time, for looking: a look at very many outcomes takes long."""
_ACTOR = "emuflow serve"


class Watch:
    """Watches the canary of the stores at `url()`; `None` there means that there never was one."""

    def __init__(self, url: Callable[[], str | None], champion: Champion, *, every_s: float = 10.0):
        """A look comes every `every_s` seconds. `champion` gives the champion's digest, and may raise anything."""
        self._url, self._champion, self._every_s = url, champion, every_s
        self._loaded: str | None = None
        self._told: tuple[str, bool] | None = None
        self._next_look = 0.0
        self._poller = Poller(self.check, _POLL_S, "watching the canary")

    def served(self, digest: str | None) -> None:
        """Take note that the model `canary` is this package now, or none. Returns at once."""
        self._loaded = digest

    def check(self) -> None:
        """Say what is served; look, if it is time."""
        url = self._url()
        if url is None:
            return
        states = ExperimentStore(url)
        try:
            record = active_canary(states.newest())
            if record is not None:
                self._tell(states, record)
                self._look(states, url, record.experiment.name)
        finally:
            states.close()

    def _tell(self, states: ExperimentStore, record: Record) -> None:
        """Only what changed here: where several servers share a store, none undoes again and again what another one says."""
        experiment, arm = record.experiment, record.experiment.arm(CANARY_ARM)
        told = (experiment.name, arm.digest == self._loaded)
        if told == self._told:
            return
        if arm.served != told[1]:
            reason = "its model is served" if told[1] else "its model is not served: its users are sent to the control"
            changed = experiment.with_arm(arm.model_copy(update={"served": told[1]}))
            try:
                states.change(changed, expected_sequence=record.sequence, actor=_ACTOR, reason=reason)
            except ExperimentConflictError:  # somebody else's change came between; again at the next check
                return
        self._told = told

    def _look(self, states: ExperimentStore, url: str, name: str) -> None:
        started = time.monotonic()
        if started < self._next_look:
            return
        self._next_look = started + self._every_s
        events = EventStore(url)
        try:
            Canary(states, events, name, champion=self._champion).look()
        finally:
            events.close()
        ended = time.monotonic()
        self._next_look = max(self._next_look, ended + (ended - started) / _LARGEST_PART)

    def close(self) -> None:
        self._poller.close()

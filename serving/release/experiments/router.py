"""Sends each user's requests to their arm and records what came of them: the traffic split of one machine.

with Recorder(events, experiment) as recorder, StoredSplit(states, experiment.name) as split:
    router = Router(split, {"champion": client, "canary": other_client}, recorder, events)
    answer = router.generate("user-17", "a red seven")
    router.vote(answer.response_id, +1)
"""

import time
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from threading import Lock
from typing import Protocol, Unpack

from common.errors import UsageError
from emuflow_client import Options, Result
from serving.release.experiments.assignment import Assignment, Split
from serving.release.experiments.events import EventStore, Outcome, Vote
from serving.release.experiments.recorder import Recorder

_REMEMBERED = 10_000


class Client(Protocol):
    """What answers for an arm, such as `emuflow_client.GeneratorClient`."""

    def generate(self, prompt: str, **options: Unpack[Options]) -> Result: ...


@dataclass(frozen=True)
class Answer:
    """An image, and whom to thank for it."""

    result: Result
    arm: str
    response_id: str
    """For a vote on it."""


class Router:
    """Safe to share between threads."""

    def __init__(self, split: Split, clients: Mapping[str, Client], recorder: Recorder, events: EventStore):
        """`clients` by arm. Raises `UsageError` where one is missing, or is for an arm that there is not."""
        arms = recorder.arms
        if set(clients) != set(arms):
            raise UsageError(
                f"there are clients for {', '.join(sorted(clients))}", fix=f"give one for each of {', '.join(arms)}"
            )
        self._split, self._clients, self._recorder, self._events = split, clients, recorder, events
        self._recent: OrderedDict[str, Assignment] = OrderedDict()
        self._answering: dict[str, str] = {}
        """By arm, the digest of the package that answered last: an error is that one's, as an image would have been."""
        self._lock = Lock()

    def generate(self, user_id: str, prompt: str, **options: Unpack[Options]) -> Answer:
        """The image of `prompt` from the user's arm. Raises what the client raises, after recording it as an error."""
        assignment, response_id = self._split.assign(user_id), uuid.uuid4().hex
        client = self._client(assignment.arm)
        package = self._answering.get(assignment.arm, assignment.package_digest)
        asked_at, started = time.time(), time.perf_counter()
        error: str | None = "Interrupted"
        try:
            result = client.generate(prompt, **options)
            error = None
            package = self._answering[assignment.arm] = result.version
            return Answer(result, assignment.arm, response_id)
        except Exception as fault:
            error = type(fault).__name__
            raise
        finally:
            latency_ms = 1000 * (time.perf_counter() - started)
            told = replace(assignment, package_digest=package)
            self._record(Outcome(told, response_id, asked_at, latency_ms, error))

    def vote(self, response_id: str, vote: int) -> bool:
        """Record what a user says of an answer, +1 or -1; whether there was room for it.

        Raises `DataError` for another vote, `UsageError` for an answer that nobody knows.
        """
        with self._lock:
            assignment = self._recent.get(response_id)
        if assignment is None:
            assignment = self._events.assignment(response_id)
        return self._recorder.record(Vote(assignment, response_id, time.time(), vote))

    def _client(self, arm: str) -> Client:
        try:
            return self._clients[arm]
        except KeyError:
            raise UsageError(
                f"the split sends to '{arm}', which no client is for", fix="start the router anew"
            ) from None

    def _record(self, outcome: Outcome) -> None:
        self._recorder.record(outcome)
        with self._lock:  # a vote may come before the outcome is written
            self._recent[outcome.response_id] = outcome.assignment
            if len(self._recent) > _REMEMBERED:
                self._recent.popitem(last=False)

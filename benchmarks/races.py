"""Promoters that race: in each round all of them want another package to be the champion, against the same one of before."""

import multiprocessing
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext
from pathlib import Path
from time import perf_counter
from typing import Any

from common.errors import PromotionConflictError
from common.files import sha256_bytes
from serving.release.store import ReleaseStore

_TIMEOUT_S = 300.0


@dataclass
class Races:
    """What came of them."""

    promoters: int
    rounds: int
    seconds: float = 0.0
    winners: dict[int, int] = field(default_factory=dict)
    """How many promoters were told in each round that they had won."""
    refused: int = 0
    """Attempts that were told to measure again."""
    errors: list[str] = field(default_factory=list)
    """Attempts that ended in anything else."""

    @property
    def attempts(self) -> int:
        return self.promoters * self.rounds

    @property
    def lost(self) -> int:
        """Rounds without exactly one winner, and attempts without an answer."""
        unclear = sum(self.winners.get(number, 0) != 1 for number in range(self.rounds))
        return unclear + self.attempts - self.refused - sum(self.winners.values())


def race(url: str, key_folder: Path, *, promoters: int, rounds: int) -> Races:
    """Let `promoters` processes, each with its own connection, race in so many `rounds` for the store at `url`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    races, told, start = Races(promoters, rounds), context.Queue(), context.Barrier(promoters)
    began = perf_counter()
    running = [_promoter(context, (url, key_folder, number, rounds, start, told)) for number in range(promoters)]
    try:
        outcomes = [told.get(timeout=_TIMEOUT_S) for _ in range(races.attempts)]
    finally:
        for process in running:
            process.join(timeout=10)
            process.kill()
    races.seconds = perf_counter() - began
    races.winners = dict(Counter(number for number, outcome in outcomes if outcome == "won"))
    races.refused = sum(outcome == "refused" for _, outcome in outcomes)
    races.errors = [outcome for _, outcome in outcomes if outcome not in ("won", "refused")]
    return races


def _promoter(context: ForkServerContext, arguments: tuple[Any, ...]) -> Any:
    process = context.Process(target=_race, args=arguments, daemon=True)
    process.start()
    return process


def _race(url: str, key_folder: Path, number: int, rounds: int, start: Any, told: Any) -> None:
    """One promoter's rounds. All have seen the same champion before the first of them promotes."""
    store = ReleaseStore(url, key_folder)
    for turn in range(rounds):
        start.wait(_TIMEOUT_S)
        champion = store.current()
        expected = champion.digest if champion else None
        start.wait(_TIMEOUT_S)
        told.put((turn, _attempt(store, f"promoter {number}, round {turn}", expected)))


def _attempt(store: ReleaseStore, name: str, expected: str | None) -> str:
    digest, evidence = sha256_bytes(name.encode()), sha256_bytes(f"verdict of {name}".encode())
    try:
        store.promote(
            "champion", digest, expected_current=expected, evidence_digest=evidence, actor=name, reason="PASS"
        )
    except PromotionConflictError:
        return "refused"
    except Exception as error:  # noqa: BLE001 - whatever a database driver raises is an attempt without an answer
        return f"{type(error).__name__}: {error}"
    return "won"

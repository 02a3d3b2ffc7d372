"""Put an earlier champion back: no retraining and no measuring, as it was the champion before.

The order is that of a promotion: first the release store, then the running server, then what only shows it. At its end a
rollback says in the audit log what followed and what did not. Where it never said so, it broke off: the next one finishes
it, and goes no further back then. Where it came to its end, but MLflow did not follow or the server could not load the
package, the next one does go further back.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import GateError, UsageError
from components.promote import follow
from components.promote.follow import ServerState
from components.promote.refusals import refusals_recorded
from components.promote.registry import Registry
from serving.package.verify import verify
from serving.release.rows import CHAMPION_STAGE, Release
from serving.release.rules import earlier_champion
from serving.release.store import ReleaseStore

_log = logging.getLogger(__name__)
_NOT_SAID = "no reason was given"


@dataclass(frozen=True)
class RollbackResult:
    """The row that stands, and what followed it."""

    release: Release
    server: ServerState
    answered: bool
    """Whether the running server was asked, and answered with the package that was put back."""
    seconds: float
    """Until then; without a server, until the release store had it."""
    resumed: bool
    """Whether it was begun by an earlier call, which did not come to its end."""


def roll_back(
    registered_model: str,
    to: str | None,
    *,
    taken_back: str | None = None,
    actor: str,
    reason: str | None,
    package_store: Path,
    key_folder: Path,
    release_url: str,
    serving: Path,
    tracking_uri: str | None = None,
    experiments_url: str | None = None,
    started: float | None = None,
    tell: Callable[[RollbackResult], None] = lambda _: None,
) -> RollbackResult:
    """Make the earlier champion `to` (a digest; `None`: the one before) the champion again.

    `taken_back` is the champion that is meant: where it is not the champion now, because the rollback is done already
    say, nothing happens but a `GateError`. Without it a rollback that is repeated goes further back.
    `tell` is called as soon as it answers, before MLflow's aliases follow; seconds count from `started` (`time.time`).
    A canary of `experiments_url`, if there is one, ends with the champion that it was compared with.
    Raises `GateError` where there is no such earlier champion, `SignatureError` where its package does not verify,
    `PromotionConflictError` where another promotion came between, `UsageError` where it is the champion already.
    """
    started = started or time.time()

    def registry() -> Registry:
        return Registry(registered_model, tracking_uri)

    store = ReleaseStore(release_url, key_folder)
    try:
        begun = store.unfinished_rollback()
        resumed = begun is not None and to in (None, begun.digest) and taken_back in (None, begun.previous_digest)
        release = begun if begun is not None and resumed else None
        try:
            release = release or _swap(store, to, taken_back, actor, reason or _NOT_SAID, package_store, key_folder)
        except UsageError:  # it is the champion already: the aliases may not have followed then
            follow.aliases(registry, store)
            raise
        server = follow.server(serving, package_store, store, release.digest)
        answered = server == "updated" and follow.answers(serving, release.digest)
        result = RollbackResult(release, server, answered, time.time() - started, resumed)
        tell(result)
        follow.canary(experiments_url, store, actor)
        shown = follow.aliases(registry, store)
        seconds = round(result.seconds, 3)
        store.complete_rollback(release, server=server, answered=answered, aliases=shown, seconds=seconds)
    finally:
        store.close()
    _log.info("package %s is the champion again, in the place of %s", release.digest, release.previous_digest)
    return result


def _swap(
    store: ReleaseStore,
    to: str | None,
    taken_back: str | None,
    actor: str,
    reason: str,
    package_store: Path,
    key_folder: Path,
) -> Release:
    champions = store.history(CHAMPION_STAGE)
    target = to or earlier_champion(champions)
    if not champions or target is None:
        raise GateError("there is no earlier champion to go back to", fix="see `emuflow history`")
    current = champions[0].digest
    if taken_back not in (None, current):
        raise GateError(
            f"package {taken_back} is not the champion, {current} is: nothing was changed", fix="see `emuflow history`"
        )
    if target == current:
        raise UsageError(f"package {target} is the champion already", fix="see `emuflow history`")
    with refusals_recorded(store, CHAMPION_STAGE, target, actor):
        verify(package_store / target, key_folder, expected_digest=target)
    return store.roll_back(target, expected_current=current, actor=actor, reason=reason)

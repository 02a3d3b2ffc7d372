"""Put an earlier champion back: no retraining and no measuring, as it was the champion before.

The order is that of a promotion: first the release store, then the running server, then what only shows it. A rollback
that broke off is finished by the next one, which goes no further back then.
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
from components.promote.settings import PromotionSettings
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
    settings: PromotionSettings,
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
    started: float | None = None,
    tell: Callable[[RollbackResult], None] = lambda _: None,
) -> RollbackResult:
    """Make the earlier champion `to` (a digest; `None`: the one before) the champion again.

    `taken_back` is the champion that is meant: where it is not the champion now, because the rollback is done already
    say, nothing happens but a `GateError`. Without it a rollback that is repeated goes further back.
    `tell` is called as soon as it answers, before MLflow's aliases follow; seconds count from `started` (`time.time`).
    Raises `GateError` where there is no such earlier champion, `SignatureError` where its package does not verify,
    `PromotionConflictError` where another promotion came between, `UsageError` where it is the champion already.
    """
    started = started or time.time()
    store = ReleaseStore(release_url, key_folder)
    try:
        begun = store.unfinished_rollback()
        resumed = begun is not None and to in (None, begun.digest) and taken_back in (None, begun.previous_digest)
        release = begun if begun is not None and resumed else None
        release = release or _swap(store, to, taken_back, actor, reason or _NOT_SAID, package_store, key_folder)
        server = follow.server(serving, package_store, release.digest)
        answered = server == "updated" and follow.answers(serving, release.digest)
        result = RollbackResult(release, server, answered, time.time() - started, resumed)
        tell(result)
        shown = follow.aliases(lambda: Registry(settings.registered_model, tracking_uri), store)
        if shown and server != "failed" and (answered or server != "updated"):
            store.complete_rollback(release, server=server, seconds=round(result.seconds, 3))
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

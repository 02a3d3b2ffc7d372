"""A second package beside the champion's, in the same server, under a name of its own: what a canary's users are sent to.

It comes and goes with what is wanted of it. Nothing that fails about it touches the champion: a package that cannot be
loaded is tried again later, and one that the server died of is not.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from common.redaction import redact_text
from serving.backoff import Backoff, Refusals
from serving.server import TritonServer

CANARY_NAME = "canary"
Wanted = Callable[[], str | None]
Tell = Callable[[str | None], None]

log = logging.getLogger(__name__)


class CanaryModel:
    """The model `canary` of one running server."""

    def __init__(
        self,
        server: TritonServer,
        package_store: Path,
        wanted: Wanted,
        retry: Backoff,
        server_died: Callable[[], bool],
        *,
        linger_s: float = 5.0,
        tell: Tell | None = None,
    ):
        """`wanted` gives a digest, `None` where there is no canary, and may raise anything; `server_died` waits until it is
        known whether a load that failed has ended the server. It is unloaded `linger_s` after it was last wanted: routers
        need a second to notice. `tell` is told which package is loaded whenever that changes, and must return at once."""
        self._server, self._package_store = server, package_store
        self._ask, self._server_died = wanted, server_died
        self._refusals, self._linger_s = Refusals(retry), linger_s
        self._last_wanted = time.monotonic()
        self._tell = tell
        self.digest: str | None = None
        """What is loaded now."""
        self._wanted: str | None = None
        self._answered = True

    def forget(self) -> None:
        """The server was started anew, with nothing in it."""
        self._set(None)

    def check(self) -> None:
        """Load, replace or unload it, as it is wanted."""
        self._refresh()
        if self._wanted is not None:
            self._last_wanted = time.monotonic()
        if self._wanted == self.digest or not self._server.answers:
            return
        if self._wanted is None:
            if time.monotonic() - self._last_wanted >= self._linger_s:
                self._unload()
        elif self._refusals.due(self._wanted):
            self._load(self._wanted)

    def _refresh(self) -> None:
        """While nobody can be asked, what was wanted last is wanted still."""
        try:
            self._wanted = self._ask()
        except Exception as error:  # noqa: BLE001 - whatever a database driver raises, what serves must go on
            if self._answered:
                log.error("cannot ask for a canary: %s", redact_text(str(error)))
            self._answered = False
            return
        self._answered = True
        self._refusals.keep((self._wanted,))

    def _load(self, digest: str) -> None:
        try:
            self._server.load(self._package_store / digest, CANARY_NAME, expected_digest=digest)
        except Exception as error:  # noqa: BLE001 - a full disk, a damaged package: the champion must go on
            if self._server_died():
                self._refusals.ban(digest)
                log.error("canary %s is not tried again, the server died of it: %s", digest, redact_text(str(error)))
                return
            pause_s = self._refusals.add(digest)
            log.error("canary %s is not served, the next try is in %g s: %s", digest, pause_s, redact_text(str(error)))
            return
        self._refusals.forget(digest)
        self._set(digest)
        log.info("canary %s is served as '%s'", digest, CANARY_NAME)

    def _unload(self) -> None:
        try:
            self._server.unload(CANARY_NAME)
        except Exception as error:  # noqa: BLE001 - as above; it is tried again at the next look
            log.error("the canary is not unloaded yet: %s", redact_text(str(error)))
            return
        log.info("there is no canary any more")
        self._set(None)

    def _set(self, digest: str | None) -> None:
        self.digest = digest
        if self._tell is not None:
            self._tell(digest)

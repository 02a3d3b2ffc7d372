"""Which package is wanted, also while nobody can be asked."""

import logging
from collections.abc import Callable

from common.redaction import redact_text

log = logging.getLogger(__name__)


class Desire:
    """Asks for the digest that is wanted; while that fails, what was wanted last is wanted still."""

    def __init__(self, ask: Callable[[], str | None], first: str):
        """`ask` gives a digest, or None where nothing is wanted now; it may raise anything."""
        self._ask, self.digest = ask, first
        self._answered = True

    def refresh(self) -> bool:
        """Ask again. Returns whether there was an answer; the log says once that there is none, and once that there is
        one again."""
        try:
            wanted = self._ask()
        except Exception as error:  # noqa: BLE001 - whatever a database driver raises, what serves must go on
            if self._answered:
                log.error("cannot ask which package is wanted; %s still is: %s", self.digest, redact_text(str(error)))
            self._answered = False
            return False
        if not self._answered:
            log.warning("which package is wanted can be asked again")
        self._answered = True
        self.digest = wanted or self.digest
        return True

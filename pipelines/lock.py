"""One run at a time works in a home."""

import contextlib
import fcntl
from collections.abc import Iterator

from common.errors import UsageError
from common.home import Home


@contextlib.contextmanager
def only_run(home: Home) -> Iterator[int]:
    """Hold the home for this run; yields the lock's file descriptor, and whoever inherits that holds the home too.

    Raises `UsageError` where another run works there, or what is left of one that was killed has not ended yet.
    """
    file = home.last_run_file.parent / "lock"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                "another run works in this folder", where=str(home.root), fix="wait for it, or use another --home"
            ) from None
        yield handle.fileno()


def run_is_alive(home: Home) -> bool:
    """Whether a run works in `home` now."""
    if not (home.last_run_file.parent / "lock").is_file():
        return False
    try:
        with only_run(home):
            return False
    except UsageError:
        return True

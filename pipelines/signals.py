"""The signals that end a run, as an exception, so that every `finally` runs."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP (a closed terminal) arrived; `exit_code` is the shell's for that signal."""

    way_on = ""
    """What then goes on with the run, where one was begun."""

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(signal.Signals(signal_number).name)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Interrupted` in the body on the first of the three signals; further ones are ignored while it cleans up."""

    def interrupt(signal_number: int, _frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal_number)

    before = {each: signal.signal(each, interrupt) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

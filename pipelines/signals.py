"""SIGINT and SIGTERM as an exception, so that every `finally` runs."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(BaseException):
    """SIGINT or SIGTERM arrived; `exit_code` is the shell's for that signal."""

    def __init__(self, signal_number: int):
        self.exit_code = 128 + signal_number
        super().__init__(signal.Signals(signal_number).name)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Raise `Interrupted` in the body on the first SIGINT or SIGTERM; further ones are ignored while it cleans up."""

    def interrupt(signal_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signal_number)

    before = {each: signal.signal(each, interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

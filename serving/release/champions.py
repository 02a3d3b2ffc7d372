"""The line of champions: which one a rollback goes back to.

A promotion puts its package at the end of the line. A rollback cuts the line behind the package that it goes back to,
so that a second one goes further back and not forth again to what was just taken away.
"""

from collections.abc import Iterable
from typing import Protocol


class Change(Protocol):
    """What is read of a release row."""

    @property
    def digest(self) -> str: ...

    @property
    def action(self) -> str | None: ...


def line_of_champions(oldest_first: Iterable[Change]) -> list[str]:
    """The digests in line; the last one is the champion."""
    line: list[str] = []
    for change in oldest_first:
        if change.action == "rollback" and change.digest in line:
            while line[-1] != change.digest:
                line.pop()
        else:
            line.append(change.digest)
    return line

"""The typed form of a lineage: what each thing is, what was compared, and what came of it."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["ok", "failed", "warning", "unchecked"]
"""`unchecked`: it cannot be checked here, and `detail` says why. Only `failed` contradicts the record."""
OUTCOMES: tuple[Outcome, ...] = ("ok", "failed", "warning", "unchecked")

Kind = Literal["response", "package", "manifest", "run", "settings", "code", "image", "step", "artifact"]


@dataclass(frozen=True)
class Check:
    """One comparison. `expected` and `found` are there where it failed."""

    name: str
    outcome: Outcome
    detail: str
    expected: str | None = None
    found: str | None = None


@dataclass(frozen=True)
class Node:
    """One thing of a lineage, with what it was made from below it."""

    kind: Kind
    name: str
    facts: Mapping[str, str] = field(default_factory=dict)
    checks: tuple[Check, ...] = ()
    children: tuple["Node", ...] = ()

    def walk(self) -> Iterator["Node"]:
        """This node and every one below it, each before its children."""
        yield self
        for child in self.children:
            yield from child.walk()


@dataclass(frozen=True)
class Lineage:
    """`packages` begins with the one that was asked for; each next one is the parent of the one before it.

    They stand in a row and not inside each other, so that a lineage may have any number of generations.
    """

    packages: tuple[Node, ...]
    response: Node | None = None

    def nodes(self) -> Iterator[Node]:
        if self.response is not None:
            yield from self.response.walk()
        for package in self.packages:
            yield from package.walk()

    def checks(self) -> Iterator[Check]:
        for node in self.nodes():
            yield from node.checks

    def counts(self) -> dict[Outcome, int]:
        """How many checks came to each outcome."""
        counted = Counter(check.outcome for check in self.checks())
        return {outcome: counted[outcome] for outcome in OUTCOMES}

    @property
    def failed(self) -> bool:
        return self.counts()["failed"] > 0

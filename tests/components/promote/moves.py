"""Promotions and rollbacks by hand, as a test makes them."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import event
from sqlalchemy.engine import Engine

from components.gate.verdict import evidence_digest, read_verdict
from components.promote.advance import AdvanceResult, advance
from components.promote.evidence import to_register, verified
from components.promote.registry import Registry
from components.promote.rollback import RollbackResult, roll_back
from components.promote.settings import PromotionSettings
from serving.release.rows import Approval
from tests.components.promote.place import SETTINGS, Candidate, Place

UNREACHABLE = "http://127.0.0.1:9"
"""Of a tracking server that does not answer."""


def moved(
    candidate: Candidate,
    to: Literal["staging", "champion"],
    approval: Approval | None = None,
    *,
    of_run: PromotionSettings | None = None,
    other_verdicts: Sequence[Path] = (),
) -> AdvanceResult:
    """By the policy that it was registered under; `of_run` is that of its run, where its settings are there."""
    place = candidate.place
    return advance(
        SETTINGS.registered_model,
        of_run,
        candidate.int8,
        to,
        candidate.folder / "verdict",
        actor="operator",
        approval=approval,
        package_store=place.home.packages,
        key_folder=place.home.keys,
        release_url=place.url,
        experiments_url=place.home.experiments_url,
        serving=place.home.serving,
        tracking_uri=place.url,
        other_verdicts=other_verdicts,
    )


def rolled_back(
    place: Place, to: str | None = None, *, tracking_uri: str | None = None, taken_back: str | None = None
) -> RollbackResult:
    return roll_back(
        SETTINGS.registered_model,
        to,
        taken_back=taken_back,
        actor="operator",
        reason="it draws ghosts",
        package_store=place.home.packages,
        key_folder=place.home.keys,
        release_url=place.url,
        serving=place.home.serving,
        tracking_uri=tracking_uri or place.url,
        experiments_url=place.home.experiments_url,
    )


def damage(candidate: Candidate) -> None:
    weights = candidate.place.home.packages / candidate.int8 / "1" / "engine" / "weights.bin"
    weights.write_bytes(b"\0" + weights.read_bytes()[1:])


def registered_without_policy(candidate: Candidate) -> None:
    """As the version before policies were noted did it."""
    place, folder = candidate.place, candidate.folder / "verdict"
    found, evidence, package = read_verdict(folder), evidence_digest(folder), place.home.packages / candidate.int8
    manifest = verified(found, package, place.home.keys)
    described = to_register(found, manifest, package, folder, evidence)
    Registry(SETTINGS.registered_model, place.url).register(described, place.run_id)
    against = found.champion_digest
    place.store.register(
        candidate.int8, evidence_digest=evidence, measured_against=against, actor="tester", reason="PASS"
    )


def at_the_first_lock(act: Callable[[], object]) -> Callable[..., None]:
    """Do something right before this process first asks for a database's write lock: what it has read is old then."""
    waiting = [act]

    def listener(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("BEGIN") and waiting:
            waiting.pop()()

    event.listen(Engine, "before_cursor_execute", listener)
    return listener

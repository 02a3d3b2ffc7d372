"""What the release store does not let happen, and which champion is before which."""

import sqlalchemy as sa

from common.errors import GateError, PromotionConflictError
from serving.release.champions import line_of_champions
from serving.release.fingerprints import name_of
from serving.release.rows import CANDIDATE_STAGE, CHAMPION_STAGE, STAGING_STAGE, Release, history, newest


def stages_to(connection: sa.Connection, stage: str, digest: str, evidence_digest: str | None) -> list[str]:
    """The stages that a promotion to `stage` comes to, in their order: staging lies on the way to champion."""
    if stage != CHAMPION_STAGE:
        return [stage]
    staged = newest(connection, STAGING_STAGE)
    there = staged is not None and (staged.digest, staged.evidence_digest) == (digest, evidence_digest)
    return [CHAMPION_STAGE] if there else [STAGING_STAGE, CHAMPION_STAGE]


def conflict(
    connection: sa.Connection, stage: str, digest: str, expected: str | None, evidence_digest: str | None
) -> PromotionConflictError | None:
    """Why a promotion to `stage` cannot be, or `None`."""
    champions = history(connection, CHAMPION_STAGE)
    found = champions[0].digest if champions else None
    if found != expected:
        return another_champion(digest, expected, found)
    for earlier in champions[1:]:
        if evidence_digest and (earlier.digest, earlier.evidence_digest) == (digest, evidence_digest):
            after = next(release for release in champions if release.sequence == earlier.sequence + 1)
            return PromotionConflictError(
                f"this evidence made it {name_of(earlier.stage, earlier.sequence)} already, which was replaced "
                f"({after.actor}: {after.reason})",
                where=f"stage '{stage}'",
                fix=f"measure the candidate again: emuflow measure {digest[:12]}",
            )
    return _measured_since(connection, stage, digest, evidence_digest)


def _measured_since(
    connection: sa.Connection, stage: str, digest: str, evidence_digest: str | None
) -> PromotionConflictError | None:
    """Why this evidence does not count: the package was registered with other evidence after it; or `None`."""
    registered = [row.evidence_digest for row in history(connection, CANDIDATE_STAGE) if row.digest == digest]
    if evidence_digest not in registered[1:]:
        return None
    return PromotionConflictError(
        f"package {digest} was measured again after this evidence, and the last measurement counts",
        where=f"stage '{stage}'",
        fix=f"see `emuflow history`; to measure it once more: emuflow measure {digest[:12]}",
    )


def another_champion(digest: str, expected: str | None, found: str | None) -> PromotionConflictError:
    measure = f"measure the candidate against the new champion: emuflow measure {digest[:12]}"
    return PromotionConflictError(
        f"the evidence was measured against {expected or 'no champion'}, but the champion is {found or 'none'}",
        where=f"stage '{CHAMPION_STAGE}'",
        fix="it became that on other evidence: see `emuflow history`" if found == digest else measure,
    )


def another_staged(connection: sa.Connection, seen: int) -> PromotionConflictError | None:
    """Why a promotion that saw staging's row `seen` (0: none) would replace one that nobody knew of, or `None`."""
    staged = newest(connection, STAGING_STAGE)
    if staged is None or staged.sequence == seen:
        return None
    return PromotionConflictError(
        f"package {staged.digest} came to staging meanwhile ({staged.actor}: {staged.reason})",
        where=f"stage '{STAGING_STAGE}'",
        fix="see `emuflow history`; if this one is still wanted there, promote it again",
    )


def why_no_rollback(
    champions: list[Release], digest: str, expected_current: str
) -> PromotionConflictError | GateError | None:
    found = champions[0].digest if champions else None
    if found != expected_current:
        return PromotionConflictError(
            f"the champion was {expected_current} when the rollback was asked for, and now is {found or 'none'}",
            where=f"stage '{CHAMPION_STAGE}'",
            fix="see `emuflow history`; if it is still wanted, roll back again",
        )
    if digest not in {release.digest for release in champions[1:]}:
        return GateError(
            f"package {digest} was not the champion before",
            where=f"stage '{CHAMPION_STAGE}'",
            fix="name one of the earlier champions that `emuflow history` shows",
        )
    return None


def earlier_champion(champions: list[Release]) -> str | None:
    """The digest that a rollback goes back to, `None` where there is none. `champions` are all rows, the newest first."""
    line = line_of_champions(reversed(champions))
    return line[-2] if len(line) > 1 else None

"""Promote a registered version by hand, to staging or to champion, on the evidence that it was registered with."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import GateError, PromotionConflictError
from components.gate.verdict import Result, Verdict, evidence_digest, read_verdict
from components.promote import follow
from components.promote.canary import passed_canary
from components.promote.evidence import unregistered_since, verified
from components.promote.follow import ServerState
from components.promote.policy import registered_policy, version_to_note
from components.promote.refusals import refusals_recorded
from components.promote.registry import Registry
from components.promote.settings import PromotionSettings
from serving.release.rows import CANDIDATE_STAGE, CHAMPION_STAGE, STAGING_STAGE, Approval, Release
from serving.release.store import ReleaseStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdvanceResult:
    """The row that stands, the version's number in the registry, and what became of the running server."""

    release: Release
    version: str
    server: ServerState
    already: bool
    """Whether the row stood before."""


def advance(
    registered_model: str,
    of_run: PromotionSettings | None,
    digest: str,
    to: Literal["staging", "champion"],
    verdict: Path,
    *,
    actor: str,
    approval: Approval | None,
    package_store: Path,
    key_folder: Path,
    release_url: str,
    experiments_url: str | None,
    serving: Path,
    tracking_uri: str | None = None,
    other_verdicts: Sequence[Path] = (),
) -> AdvanceResult:
    """Promote package `digest` to the stage `to` on the verdict of the folder `verdict`, by the policy that was registered
    with it, else by `of_run` (`registered_policy`). `experiments_url` is None where there was never a canary; `other_verdicts`
    are folders of those that are here, of whatever package.

    Raises `GateError` where the verdict is not a PASS about this package that was registered, or not the last one, where its
    policy is not known, or a person's approval or a canary that passed is wanted and missing; `SignatureError` or
    `DigestMismatchError` where the package does not verify; `TrackingError` where MLflow does not answer;
    `PromotionConflictError` where the evidence was measured against another champion, or another package came to staging
    meanwhile. Every refusal goes into the audit log.
    """
    store = ReleaseStore(release_url, key_folder)
    registry = Registry(registered_model, tracking_uri)
    try:
        staged = store.current(STAGING_STAGE)
        with refusals_recorded(store, to, digest, actor):
            decided = read_verdict(verdict)
            _check_verdict(decided, digest, verdict)
            evidence = evidence_digest(verdict)
            version = _registered_version(store, registry, digest, evidence, verdict)
            _check_last(store, decided, evidence, other_verdicts)
            verified(decided, package_store / digest, key_folder)
            reason, before = f"{decided.result.value}: {'; '.join(decided.reasons)}", store.current(to)
            stands = before is not None and (before.digest, before.evidence_digest) == (digest, evidence)
            if to == CHAMPION_STAGE:
                policy = registered_policy(store, digest, evidence, of_run)
                _check_approval(policy, digest, approval)
                rival = decided.champion_digest
                if policy.canary == "required" and rival is not None and not stands:
                    reason += _canary_that_passed(experiments_url, rival, digest, policy)
        try:
            release = store.promote(
                to,
                digest,
                expected_current=decided.champion_digest,
                evidence_digest=evidence,
                actor=actor,
                reason=reason,
                approval=approval,
                staged_before=staged.sequence if staged else 0,
                noted=version_to_note(registered_model, version),
            )
        except PromotionConflictError as conflict:
            registry.tag_refused(version, str(conflict))
            raise
        follow.aliases(lambda: registry, store)
        follow.canary(experiments_url, store, actor)
        server: ServerState = "left as it was"
        if to == CHAMPION_STAGE:
            server = follow.server(serving, package_store, store, digest)
    finally:
        store.close()
    _log.info("version %s, package %s, came to %s", version, digest, to)
    return AdvanceResult(release, version, server, already=release == before)


def _check_approval(policy: PromotionSettings, digest: str, approval: Approval | None) -> None:
    if policy.approval == "person" and approval is None:
        raise GateError(
            "the policy (promotion.approval) wants a person's approval of a champion",
            where=f"package {digest}",
            fix="say who approves it, and why: --approve-by NAME --why TEXT",
        )


def _canary_that_passed(experiments_url: str | None, champion: str, digest: str, registered: PromotionSettings) -> str:
    """What the release's reason says of it."""
    passed = passed_canary(experiments_url, champion=champion, candidate=digest, policy=registered.canary_policy)
    return f"; canary '{passed.experiment.name}' (state {passed.sequence}): {passed.reason}"


def _check_verdict(decided: Verdict, digest: str, verdict: Path) -> None:
    if decided.candidate_digest != digest:
        raise GateError(
            f"the verdict is about package {decided.candidate_digest or 'none'}, not {digest}",
            where=str(verdict),
            fix=_measure(digest),
        )
    if decided.result is not Result.PASS:
        raise GateError(
            f"the verdict is {decided.result.value}, not PASS: {'; '.join(decided.reasons)}",
            where=str(verdict),
            fix="train a better candidate" if decided.result is Result.FAIL else _measure(digest),
        )


def _registered_version(store: ReleaseStore, registry: Registry, digest: str, evidence: str, verdict: Path) -> str:
    """The version's number in the registry, which must have just this evidence. So must the release store, where it knows
    the candidate: one from before the stages it does not. Of several measurements the last one counts."""
    version = registry.version_with(digest, evidence)
    known = [row.evidence_digest for row in store.history(CANDIDATE_STAGE) if row.digest == digest]
    if evidence in known[1:]:
        raise GateError(
            f"package {digest} was measured again after this verdict (sha256 {evidence}), and registered with another",
            where=str(verdict),
            fix=f"put that one's folder back, or measure once more: emuflow measure {digest[:12]}",
        )
    if version is None and evidence in known:
        raise GateError(
            f"MLflow has no version of package {digest} with this verdict (sha256 {evidence}): it did not take the record",
            where=str(verdict),
            fix=_measure(digest),
        )
    if version is None or (known and evidence not in known):
        raise GateError(
            f"this verdict (sha256 {evidence}) is not one that package {digest} was registered with",
            where=str(verdict),
            fix=_measure(digest),
        )
    return version


def _check_last(store: ReleaseStore, decided: Verdict, evidence: str, others: Sequence[Path]) -> None:
    """A measurement whose promotion was killed left a verdict, and nothing in the release store."""
    digest = decided.candidate_digest
    known = {row.evidence_digest for row in store.history(CANDIDATE_STAGE) if row.digest == digest}
    newer = unregistered_since(decided, {*known, evidence}, others)
    if newer is not None:
        raise GateError(
            f"package {digest} was measured again after this verdict, and what came of that was never registered",
            where=str(newer),
            fix=_measure(digest),
        )


def _measure(digest: str) -> str:
    return f"measure it: emuflow measure {digest[:12]}"

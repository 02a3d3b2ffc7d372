"""Promote a candidate on the strength of its verdict, or record why not: what the pipeline does at its end.

The order is what makes a crash harmless: the verdict comes into the release store first, also while MLflow is away, so that
no older PASS is taken for the last word; then the candidate is registered in MLflow, so that no champion lacks a record; then
the release store is swapped, which is the promotion; the aliases and the running server only follow, and are made to
follow again by the next promotion and by the server itself.
"""

import getpass
import logging
from dataclasses import dataclass
from pathlib import Path

from common.errors import PromotionConflictError
from components.gate.verdict import Result, evidence_digest, read_verdict
from components.promote import follow
from components.promote.evidence import check_exported, exported_digest, to_register, verified
from components.promote.follow import ServerState
from components.promote.policy import policy_to_note, version_to_note
from components.promote.refusals import refusals_recorded
from components.promote.registry import Registry
from components.promote.settings import PromotionSettings
from serving.release.rows import CANDIDATE_STAGE, CHAMPION_STAGE, STAGING_STAGE
from serving.release.store import ReleaseStore

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromotionResult:
    """What became of the candidate."""

    promoted: bool
    """Whether it became the champion, or was it already."""
    stage: str
    """How far it came: candidate, staging or champion."""
    verdict: str
    version: str
    champion: str | None
    """The champion's digest afterwards, `None` where there is none: another package's where somebody decided otherwise since."""
    server: ServerState
    reasons: tuple[str, ...]


def promote(
    settings: PromotionSettings,
    verdict: Path,
    exported: Path,
    package_store: Path,
    key_folder: Path,
    release_url: str,
    serving: Path,
    tracking_uri: str | None = None,
    run_id: str | None = None,
    experiments_url: str | None = None,
) -> PromotionResult:
    """Register the candidate of the `verdict` folder with its evidence; on PASS promote it as far as the settings say.

    `serving` is the folder of the running server, if any, which is then made to serve a new champion. Raises `GateError`
    without a verdict or with one that is not about the exported packages, `SignatureError` where the package does not
    verify, `TrackingError` where MLflow cannot record it (nothing is promoted then; the release store has the verdict), and
    `PromotionConflictError` where the champion is no longer the one that the verdict was measured against, another package
    came to staging meanwhile, or this one was measured again since. A canary of `experiments_url`, if there is one, ends
    with the champion that it was compared with.
    """
    store, actor = ReleaseStore(release_url, key_folder), settings.actor or getpass.getuser()
    digest, goal = exported_digest(exported), settings.pipeline_stage
    try:
        staged = store.current(STAGING_STAGE)
        with refusals_recorded(store, goal, digest, actor):
            decided = read_verdict(verdict)
            check_exported(decided, exported)
            package = package_store / digest
            manifest = verified(decided, package, key_folder)
        evidence, reason = evidence_digest(verdict), f"{decided.result.value}: {'; '.join(decided.reasons)}"
        store.register(
            digest,
            evidence_digest=evidence,
            measured_against=decided.champion_digest,
            actor=actor,
            reason=reason,
            noted=policy_to_note(settings),
        )
        registry = Registry(settings.registered_model, tracking_uri)
        version = registry.register(to_register(decided, manifest, package, verdict, evidence), run_id)
        stage = CANDIDATE_STAGE
        if goal == CANDIDATE_STAGE:
            _log.info("nothing more than its registration was asked for (promotion.to)")
        elif decided.result is not Result.PASS:
            store.refuse(goal, digest, evidence_digest=evidence, actor=actor, reason=reason)
        else:
            try:
                stage = store.promote(
                    goal,
                    digest,
                    expected_current=decided.champion_digest,
                    evidence_digest=evidence,
                    actor=actor,
                    reason=reason,
                    staged_before=staged.sequence if staged else 0,
                    noted=version_to_note(settings.registered_model, version),
                ).stage
            except PromotionConflictError as conflict:
                registry.tag_refused(version, str(conflict))
                raise
        follow.aliases(lambda: registry, store)
        follow.canary(experiments_url, store, actor)
        promoted = stage == CHAMPION_STAGE
        server = follow.server(serving, package_store, store, digest) if promoted else _untouched(serving)
        champion = store.current(CHAMPION_STAGE)
    finally:
        store.close()
    _log.info("version %s, package %s: %s (%s)", version, digest, stage, reason)
    reasons = tuple(decided.reasons)
    held = champion.digest if champion else None
    return PromotionResult(promoted, stage, decided.result.value, version, held, server, reasons)


def _untouched(serving: Path) -> ServerState:
    from serving.deployment import read_state

    return "left as it was" if read_state(serving) else "not running"

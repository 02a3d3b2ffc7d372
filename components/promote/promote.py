"""Promote a candidate on the strength of its verdict, or record why not. The champion changes here and nowhere else.

The order is what makes a crash harmless: the candidate is registered first, so that no champion lacks a record; then
the release store is swapped, which is the promotion; the alias and the running server only follow, and are made to
follow again by the next promotion and by the server itself.
"""

import getpass
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.errors import DigestMismatchError, EmuflowError, GateError, PromotionConflictError, TrackingError
from common.files import read_json
from components.gate import report
from components.gate import verdict as verdict_module
from components.gate.verdict import Result, Verdict, evidence_digest, read_verdict
from components.promote.registry import Evidence, Registry
from components.promote.settings import PromotionSettings
from serving.package.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from serving.package.verify import verify
from serving.release.store import CHAMPION_STAGE, Release, ReleaseStore

_log = logging.getLogger(__name__)
ServerState = Literal["not running", "updated", "left as it was"]


@dataclass(frozen=True)
class PromotionResult:
    """What became of the candidate. `champion` is the champion's digest afterwards, `None` where there is none."""

    promoted: bool
    verdict: str
    version: str
    champion: str | None
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
) -> PromotionResult:
    """Register the candidate of the `verdict` folder with its evidence; on PASS make it the champion.

    `serving` is the folder of the running server, if any, which is then made to serve it. Raises `GateError` without
    a verdict or with one that is not about the exported packages, `SignatureError` where the package does not verify,
    `TrackingError` where MLflow cannot record it (nothing is promoted then), and `PromotionConflictError` where
    the champion is no longer the one that the verdict was measured against.
    """
    decided = read_verdict(verdict)
    package = _matching_package(decided, exported, package_store)
    manifest = verify(package, key_folder, expected_digest=decided.candidate_digest)
    _check_provenance(decided, manifest)
    evidence = evidence_digest(verdict)

    registry = Registry(settings.registered_model, tracking_uri)
    version = registry.register(_evidence(decided, manifest, package, verdict, evidence), run_id)
    store = ReleaseStore(release_url, key_folder)
    try:
        if decided.result is not Result.PASS:
            current = store.current(CHAMPION_STAGE)
            _mirror(registry, current)
            return _rejected(decided, version, current, serving)
        try:
            release = _swap(settings, store, decided, evidence)
        except PromotionConflictError as conflict:
            registry.tag(version, {"promotion": "refused", "promotion_reason": str(conflict)})
            raise
    finally:
        store.close()
    _mirror(registry, release)
    server = _reconcile(serving, package_store, release.digest)
    _log.info("version %s, package %s, is the champion", version, release.digest)
    return PromotionResult(True, decided.result.value, version, release.digest, server, tuple(decided.reasons))


def _matching_package(decided: Verdict, exported: Path, package_store: Path) -> Path:
    digests = read_json(exported / "export.json")
    named = (decided.candidate_digest, decided.candidate_fp32_digest)
    if named != (digests["int8"], digests["fp32"]):
        raise GateError(
            f"the verdict is about package {decided.candidate_digest or 'none'}, but {digests['int8']} was exported",
            where=str(exported / "export.json"),
            fix="run the benchmark and the gate on this export",
        )
    return package_store / decided.candidate_digest


def _check_provenance(decided: Verdict, manifest: Manifest) -> None:
    """The package must have held out the very evaluation set that it was measured on."""
    if manifest.provenance.evaluation_digest != decided.evaluation_digest:
        raise DigestMismatchError(
            f"it was measured on evaluation set {decided.evaluation_digest}, but its training held out "
            f"{manifest.provenance.evaluation_digest}",
            where=f"package {manifest.digest}",
            fix="measure it on the evaluation set of its own lineage",
        )


def _evidence(decided: Verdict, manifest: Manifest, package: Path, verdict: Path, evidence: str) -> Evidence:
    origin = manifest.provenance
    return Evidence(
        package_digest=decided.candidate_digest,
        evidence_digest=evidence,
        tags={
            "verdict": decided.result.value,
            "reasons": "; ".join(decided.reasons),
            "measured_against": decided.champion_digest or "none",
            "fp32_package_digest": decided.candidate_fp32_digest or "none",
            "evaluation_digest": decided.evaluation_digest,
            "data_digest": origin.data_digest,
            "tokenizers_digest": origin.tokenizers_digest,
            "git_commit": origin.git_commit,
            "pipeline_run": origin.run_id,
            "parent_package": origin.parent_package or "none",
        },
        files={
            "evidence": [verdict / verdict_module.FILE_NAME, verdict / report.FILE_NAME],
            "package": [package / MANIFEST_NAME, package / SIGNATURE_NAME],
        },
    )


def _swap(settings: PromotionSettings, store: ReleaseStore, decided: Verdict, evidence: str) -> Release:
    """Compare and swap against the champion that the evidence names; a promotion that is done already stands."""
    current = store.current(CHAMPION_STAGE)
    if current is not None and current.digest == decided.candidate_digest:
        return current
    return store.promote(
        CHAMPION_STAGE,
        decided.candidate_digest,
        expected_current=decided.champion_digest,
        evidence_digest=evidence,
        actor=settings.actor or getpass.getuser(),
        reason=f"{decided.result.value}: {'; '.join(decided.reasons)}",
    )


def _rejected(decided: Verdict, version: str, current: Release | None, serving: Path) -> PromotionResult:
    from serving.deployment import read_state

    server: ServerState = "left as it was" if read_state(serving) else "not running"
    champion = current.digest if current else None
    _log.info("version %s is not promoted (%s); the champion stays %s", version, decided.result.value, champion)
    return PromotionResult(False, decided.result.value, version, champion, server, tuple(decided.reasons))


def _mirror(registry: Registry, release: Release | None) -> None:
    """The store already holds the decision: an alias that cannot follow now is repaired by the next promotion."""
    if release is None:
        return
    try:
        registry.mirror(CHAMPION_STAGE, release.digest, release.evidence_digest)
    except TrackingError as error:
        _log.warning("the alias '%s' does not follow yet: %s", CHAMPION_STAGE, error)


def _reconcile(serving: Path, package_store: Path, digest: str) -> ServerState:
    """Make the running server serve the champion. One that cannot keeps serving the old package and tries again by
    itself, so this does not undo the promotion."""
    from serving.deployment import reconcile_if_running

    try:
        return reconcile_if_running(serving, package_store, digest)
    except EmuflowError as error:
        _log.error("the running server does not serve the new champion yet: %s", error)
        return "left as it was"

"""What a promotion demands as evidence: a verdict about this very package, and a package that is what it says."""

import datetime
from collections.abc import Collection, Iterable
from pathlib import Path

from common.errors import DigestMismatchError, GateError
from common.files import read_json
from components.gate import report
from components.gate import verdict as verdict_module
from components.gate.verdict import Verdict, read_verdict
from components.promote.registry import EVIDENCE_FOLDER, Evidence
from serving.package.manifest import MANIFEST_NAME, SIGNATURE_NAME, Manifest
from serving.package.verify import verify


def exported_digest(exported: Path) -> str:
    """The digest of the exported package that is to be promoted."""
    return read_json(exported / "export.json")["int8"]


def check_exported(decided: Verdict, exported: Path) -> None:
    """Raise `GateError` unless the verdict is about both exported packages."""
    digests = read_json(exported / "export.json")
    named = (decided.candidate_digest, decided.candidate_fp32_digest)
    if named != (digests["int8"], digests["fp32"]):
        raise GateError(
            f"the verdict is about package {decided.candidate_digest or 'none'}, but {digests['int8']} was exported",
            where=str(exported / "export.json"),
            fix=f"measure this export: emuflow measure {digests['int8'][:12]}",
        )


def verified(decided: Verdict, package: Path, key_folder: Path) -> Manifest:
    """The manifest of the package that was measured.

    Raises `SignatureError` where it does not verify, and `DigestMismatchError` where its training did not hold out the
    very evaluation set that it was measured on.
    """
    manifest = verify(package, key_folder, expected_digest=decided.candidate_digest)
    if manifest.provenance.evaluation_digest != decided.evaluation_digest:
        raise DigestMismatchError(
            f"it was measured on evaluation set {decided.evaluation_digest}, but its training held out "
            f"{manifest.provenance.evaluation_digest}",
            where=f"package {manifest.digest}",
            fix=f"measure it on the evaluation set of its own run: emuflow measure {manifest.digest[:12]}",
        )
    return manifest


def unregistered_since(decided: Verdict, registered: Collection[str | None], folders: Iterable[Path]) -> Path | None:
    """Of `folders`, the first whose verdict is about the same package and champion as `decided`, is not older, and is none
    of the `registered` ones (their sha256); `None` where there is none. What cannot be read is no verdict."""
    pair, since = (decided.candidate_digest, decided.champion_digest), _time(decided)
    for folder in folders:
        try:
            other = read_verdict(folder)
            newer = _time(other) >= since
        except (GateError, ValueError):
            continue
        same = (other.candidate_digest, other.champion_digest) == pair
        if same and newer and verdict_module.evidence_digest(folder) not in registered:
            return folder
    return None


def _time(verdict: Verdict) -> datetime.datetime:
    return datetime.datetime.fromisoformat(verdict.created)


def to_register(decided: Verdict, manifest: Manifest, package: Path, verdict: Path, evidence_digest: str) -> Evidence:
    """What the registry keeps of a candidate."""
    origin = manifest.provenance
    return Evidence(
        package_digest=decided.candidate_digest,
        evidence_digest=evidence_digest,
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
            EVIDENCE_FOLDER: [verdict / verdict_module.FILE_NAME, verdict / report.FILE_NAME],
            "package": [package / MANIFEST_NAME, package / SIGNATURE_NAME],
        },
    )

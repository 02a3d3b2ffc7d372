"""The verdict as evidence: one sha256 that the gate's record, the release store and the registry all name."""

from pathlib import Path

from common.files import sha256_file
from pipelines.lineage.compare import digest, equal, record, unchecked, word
from pipelines.lineage.packages import registered
from pipelines.lineage.sources import Away
from pipelines.lineage.subject import Subject
from pipelines.lineage.tree import Check


def evidence_checks(subject: Subject, verdict: Path) -> tuple[Check, ...]:
    """The verdict is about this package, and is the one that the package was registered and promoted on, wherever that was
    not another one that it was registered with: it may have been measured more than once."""
    named = {"int8": "candidate_digest", "fp32": "candidate_fp32_digest"}[subject.precision]
    gate = {"steps/gate.json": word(subject.result("gate"), "evidence_digest")}
    evidence = digest("verdict", verdict, sha256_file, gate)
    if not verdict.exists():
        return (evidence,)
    about = equal("verdict's package", word(record(verdict), named), {"the package's folder": subject.digest})
    if subject.precision != "int8":
        return (evidence, about)
    found = sha256_file(verdict)
    return (evidence, about, _in_release_store(subject, found), _in_registry(subject, found))


def _in_release_store(subject: Subject, found: str) -> Check:
    name = "verdict in the release store"
    if isinstance(subject.sources.releases, Away):
        return unchecked(name, subject.sources.releases.reason)
    rows = subject.sources.releases_of(subject.digest, on=found)
    if not rows:
        return unchecked(name, "this package never came to a stage")
    return equal(name, found, {f"{stage} #{row.sequence}": row.evidence_digest for stage, row in rows.items()})


def _in_registry(subject: Subject, found: str) -> Check:
    name = "verdict in the registry"
    version = registered(subject, on=found)
    if isinstance(version, Away):
        return unchecked(name, version.reason)
    return equal(name, found, {f"MLflow's version {version.number}": version.tags.get("evidence_digest")})

"""The package itself: its signature, its files, its manifest, and what the stores say of it."""

from common.errors import SignatureError
from common.files import sha256_file
from pipelines.lineage.compare import digest, equal, unchecked, unreadable
from pipelines.lineage.sources import Away, Version
from pipelines.lineage.subject import Subject
from pipelines.lineage.tree import Check, Node
from serving.package.manifest import MANIFEST_NAME
from serving.package.verify import verify

_REGISTRY_TAGS = ("data_digest", "evaluation_digest", "tokenizers_digest", "git_commit", "parent_package")


def package_node(subject: Subject, children: tuple[Node, ...]) -> Node:
    """A package with `children`, which are what it was made by."""
    version = subject.sources.version_of(subject.digest)
    stages = subject.sources.releases_of(subject.digest)
    facts = {
        "digest": subject.digest,
        "precision": subject.precision,
        "version": version or "none",
        "parent": subject.parent or "none: the first of its lineage",
        **{f"{stage} since": row.time for stage, row in stages.items()},
    }
    manifest = subject.folder / MANIFEST_NAME
    name = digest("manifest digest", manifest, sha256_file, {"the package's folder": subject.digest})
    checks = (name, signature_check(subject), *_registry_checks(subject))
    return Node("package", subject.digest, facts, checks, (_manifest_node(subject, children),))


def signature_check(subject: Subject) -> Check:
    """The signature and every file, as before a load."""
    name = "package signature and files"
    if not subject.folder.is_dir():
        return unchecked(name, "the package is gone from the package store")
    try:
        manifest = verify(subject.folder, subject.sources.home.keys)
    except (SignatureError, OSError, ValueError) as error:
        return unreadable(name, error)
    return Check(name, "ok", f"signed by a trusted key; {len(manifest.files)} files are as it lists them")


def _manifest_node(subject: Subject, children: tuple[Node, ...]) -> Node:
    origin = subject.origin
    if subject.manifest is None or origin is None:
        return Node("manifest", "gone", {"instead": "the run's own record"}, (), children)
    facts = {
        "files": str(len(subject.manifest.files)),
        **{key: str(value or "none") for key, value in sorted(vars(origin).items())},
    }
    return Node("manifest", subject.digest, facts, (), children)


def registered(subject: Subject, *, on: str | None = None) -> Version | Away:
    """The registry's newest version of this package: of those with the evidence `on` (its sha256), where there are any."""
    versions = subject.sources.versions
    if isinstance(versions, Away):
        return versions
    of_package = [version for version in versions if version.package == subject.digest]
    found = [version for version in of_package if version.tags.get("evidence_digest") == on] or of_package
    return max(found, key=lambda version: int(version.number)) if found else Away("no version of it is registered")


def _registry_checks(subject: Subject) -> tuple[Check, ...]:
    """The registry's tags say of the package what its manifest says."""
    name = "registry's tags"
    if subject.precision != "int8":
        return ()  # the full-precision reference is no candidate
    version = registered(subject)
    if isinstance(version, Away):
        return (unchecked(name, version.reason),)
    if subject.origin is None:
        return (unchecked(name, "the manifest is gone"),)
    where = f"MLflow's version {version.number}"
    checks = [
        equal(f"{name}: {tag}", subject.named(tag) or "none", {where: version.tags[tag]})
        for tag in _REGISTRY_TAGS
        if tag in version.tags
    ]
    recorded = subject.run.version if subject.run else None
    if recorded and not any(v.number == recorded and v.package == subject.digest for v in _versions(subject)):
        checks.append(Check("registry's version", "failed", f"{where} is this package", version.number, recorded))
    bad = tuple(check for check in checks if check.outcome == "failed")
    return bad or (Check(name, "ok", f"{where} says of {len(checks)} values what the manifest says"),)


def _versions(subject: Subject) -> tuple[Version, ...]:
    return () if isinstance(subject.sources.versions, Away) else subject.sources.versions

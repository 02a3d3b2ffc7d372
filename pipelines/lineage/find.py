"""Which package is meant."""

from common.errors import TrackingError, UsageError
from pipelines.lineage.sources import Away, Sources
from pipelines.versions import is_digest, is_number
from serving.release.store import CHAMPION_STAGE

_MOST_LISTED = 10


def find_package(sources: Sources, wanted: str) -> str:
    """The digest of `champion`, of a version's number, or of a digest's beginning (8 characters or more).

    Raises `UsageError`, with what there is, where nothing or more than one package is meant, and `TrackingError` where
    the champion is asked for and the release store is away.
    """
    if wanted == CHAMPION_STAGE:
        return _champion(sources)
    if is_number(wanted):
        return _of_version(sources, wanted)
    if not is_digest(wanted):
        raise _nothing(sources, f"'{wanted}' is no version, no digest's beginning of 8 characters, and no .json file")
    found = sorted(digest for digest in known_packages(sources) if digest.startswith(wanted))
    if not found:
        raise _nothing(sources, f"no package begins with {wanted}")
    if len(found) > 1:
        raise UsageError(
            f"{len(found)} packages begin with {wanted}", where=str(sources.home.packages), fix="give more characters"
        )
    return found[0]


def known_packages(sources: Sources) -> set[str]:
    """The digests of all packages that are there or that a record names."""
    folder = sources.home.packages
    known = {path.name for path in folder.iterdir() if is_digest(path.name)} if folder.is_dir() else set()
    known |= {record.candidate for record in sources.records.values() if record.candidate}
    if not isinstance(sources.versions, Away):
        known |= {version.package for version in sources.versions if version.package}
    if not isinstance(sources.releases, Away):
        known |= {release.digest for release in sources.releases}
    return known


def _champion(sources: Sources) -> str:
    if isinstance(sources.releases, Away):
        raise TrackingError(
            f"nobody can say which package is the champion: {sources.releases.reason}",
            where="champion",
            fix=f"name the package: {_listed(sources)}",
        )
    row = next((release for release in sources.releases if release.stage == CHAMPION_STAGE), None)
    if row is None:
        raise _nothing(sources, "there is no champion yet")
    return row.digest


def _of_version(sources: Sources, number: str) -> str:
    """The run's own record first: it is there without MLflow."""
    for record in sources.records.values():
        if record.version == number and record.candidate:
            return record.candidate
    if not isinstance(sources.versions, Away):
        for version in sources.versions:
            if version.number == number and version.package:
                return version.package
    raise _nothing(sources, f"there is no version {number}")


def _nothing(sources: Sources, what: str) -> UsageError:
    return UsageError(what, where=str(sources.home.root), fix=f"name one of these: {_listed(sources)}")


def _listed(sources: Sources) -> str:
    names = []
    for digest in known_packages(sources):
        number = sources.version_of(digest)
        names.append((-int(number) if number else 0, f"version {number} ({digest[:12]})" if number else digest[:12]))
    names = [name for _, name in sorted(names)]
    more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
    return (", ".join(names[:_MOST_LISTED]) + more) or "nothing is there yet; run the pipeline: emuflow run"

"""Where a retraining starts from: the champion and what its run left."""

from dataclasses import dataclass
from pathlib import Path

from common.errors import UsageError
from common.files import read_json
from common.home import Home
from components.ingest.settings import BUILT_IN
from pipelines.connection import release_store
from pipelines.record import FILE_NAME


@dataclass(frozen=True)
class Parent:
    """The champion at the start of a run and the artifacts of its lineage; all `None` for a first run."""

    digest: str | None = None
    run_id: str | None = None
    tokenizers: Path | None = None
    checkpoint: Path | None = None
    evaluation_set: Path | None = None
    other_data: bool = False
    """The champion learned from another kind of data: its evaluation set and tokenizers are of no use to this run."""


def find_parent(home: Home, release_url: str, source: str) -> Parent:
    """The champion that the release store wants now, with its run's tokenizers, checkpoint and evaluation set.

    `source` is this run's data: between the digit world and a user's own data nothing but the digest is taken over.

    Raises `UsageError` where the champion's package or run is gone from `home`.
    """
    from serving.package.manifest import read_manifest

    champion = current_champion(release_url)
    if champion is None:
        return Parent()
    package = home.packages / champion
    if not package.is_dir():
        raise _gone(champion, package)
    run_id = read_manifest(package).provenance.run_id
    run = home.run(run_id)
    if not (run / FILE_NAME).is_file():
        raise _gone(champion, run)
    parents_source = read_json(run / FILE_NAME)["settings"]["data"]["source"]
    if (parents_source == BUILT_IN) != (source == BUILT_IN):
        return Parent(champion, run_id, other_data=True)
    tokenizers, checkpoint, evaluation_set = (run / name for name in ("tokenizers", "checkpoint", "evaluation_set"))
    for path in (tokenizers, checkpoint, evaluation_set):
        if not path.is_dir():
            raise _gone(champion, path)
    return Parent(champion, run_id, tokenizers.resolve(), checkpoint.resolve(), evaluation_set.resolve())


def current_champion(release_url: str) -> str | None:
    """The digest of the package that is the champion now. Raises `TrackingError` where the store does not answer."""
    with release_store(release_url) as store:
        release = store.current()
        return release.digest if release else None


def _gone(digest: str, path: Path) -> UsageError:
    return UsageError(
        f"the champion {digest[:12]} was made from files that are no longer there",
        where=str(path),
        fix="put the folder back, or begin again under another --home",
    )

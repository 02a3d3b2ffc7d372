"""A package in its lineage, and where to look for what it was made from."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import SignatureError
from components.gate.verdict import FILE_NAME as VERDICT
from pipelines.lineage.compare import record
from pipelines.lineage.sources import Sources
from pipelines.record import FILE_NAME, RunRecord
from serving.package.manifest import Manifest, Provenance, read_manifest

SETTINGS, RUN = "settings.json", FILE_NAME


@dataclass(frozen=True)
class Subject:
    """What is known of one package before anything is checked.

    `manifest` is unverified, and `None` where it is gone or is none; then the run's record says where it came from.
    """

    sources: Sources
    digest: str
    folder: Path
    manifest: Manifest | None
    run: RunRecord | None
    run_folder: Path | None
    """`None` where nobody says which run it was, or its folder is gone."""

    @property
    def origin(self) -> Provenance | None:
        return self.manifest.provenance if self.manifest else None

    @property
    def run_id(self) -> str | None:
        if self.origin:
            return self.origin.run_id
        return self.run.run_id if self.run else None

    @property
    def parent(self) -> str | None:
        if self.origin:
            return self.origin.parent_package
        return self.run.provenance.get("parent_package") if self.run else None

    @property
    def precision(self) -> str:
        return self.manifest.precision if self.manifest else "int8"

    def named(self, field: str) -> str | None:
        """What the manifest's provenance says, `None` without a manifest."""
        return getattr(self.origin, field) if self.origin else None

    def read(self, *parts: str) -> dict[str, Any]:
        """A JSON file of the run, empty where there is none."""
        return record(self.run_folder.joinpath(*parts)) if self.run_folder else {}

    def step(self, name: str) -> dict[str, Any]:
        return self.read("steps", f"{name}.json")

    def result(self, step: str) -> dict[str, Any]:
        """What the step's function returned."""
        return self.step(step).get("result") or {}

    def shown(self, path: Path) -> str:
        """`path` as it lies under the home."""
        root = self.sources.home.root.resolve()
        return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def find_subject(sources: Sources, digest: str) -> Subject:
    folder = sources.home.packages / digest
    try:
        manifest = read_manifest(folder)
    except (SignatureError, OSError):
        manifest = None
    run = sources.record_of(digest)
    run_id = manifest.provenance.run_id if manifest else (run.run_id if run else None)
    run_folder = sources.run_folder(run_id) if run_id else None
    if run_folder is not None and not run_folder.is_dir():
        run_folder = None
    return Subject(sources, digest, folder, manifest, sources.records.get(run_id or "", run), run_folder)


def measurements(subject: Subject) -> list[Subject]:
    """The package as each run knows it that measured it once more and left a verdict, the oldest first."""
    sources = subject.sources
    runs = [(run, sources.run_folder(run.run_id)) for run in reversed(sources.measurements_of(subject.digest))]
    return [
        replace(subject, run=run, run_folder=folder)
        for run, folder in runs
        if folder is not None and (folder / "verdict" / VERDICT).is_file()
    ]

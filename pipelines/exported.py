"""A package that was exported before, with what its run left for measuring it again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DigestMismatchError, UsageError
from common.files import read_json
from common.home import Home
from model.tokenizers.digest import tokenizers_digest
from pipelines.provenance import settings_are
from pipelines.record import FILE_NAME
from pipelines.run_folder import SETTINGS_FILE

ARTIFACTS = ("exported", "evaluation_set", "tokenizers", "trained_judge")
"""What a measurement reads, by its name in the run's folder."""


@dataclass(frozen=True)
class Exported:
    """A candidate whose files verify, and the folder of the run that exported it."""

    digest: str
    preset: str
    run_folder: Path
    settings: dict[str, Any]
    """The run's own, which the signed manifest names."""
    tracking_run: str | None
    """The run in MLflow."""

    def artifact(self, name: str) -> Path:
        return (self.run_folder / name).resolve()


def find_exported(home: Home, digest: str) -> Exported:
    """The candidate `digest` and what its run left.

    Raises `UsageError` where its package, its full-precision form or an artifact of its run is gone, or it is no
    candidate; `SignatureError` where a package was altered; `DigestMismatchError` where the run's settings or tokenizers were.
    """
    from serving.package.verify import verify

    package = home.packages / digest
    if not package.is_dir():
        raise UsageError(f"package {digest} is not in the store", where=str(package), fix="put it back there")
    manifest = verify(package, home.keys, expected_digest=digest)
    origin = manifest.provenance
    folder = home.run(origin.run_id)
    needed = [folder / name for name in (FILE_NAME, SETTINGS_FILE, *ARTIFACTS)]
    if gone := [path.name for path in needed if not path.exists()]:
        raise UsageError(
            f"run {origin.run_id} exported package {digest[:12]}, and of what it left there is no {', '.join(gone)}",
            where=str(folder),
            fix="put it back, or make a new candidate: emuflow run",
        )
    digests = read_json(folder / "exported" / "export.json")
    if digests["int8"] != digest:
        what = "is the full-precision form of a candidate" if digests["fp32"] == digest else "is not its last export"
        raise UsageError(
            f"package {digest[:12]} {what}",
            where=f"run {origin.run_id}",
            fix=f"measure the candidate: emuflow measure {digests['int8'][:12]}",
        )
    reference = home.packages / digests["fp32"]
    if not reference.is_dir():
        raise UsageError(
            f"the full-precision form of package {digest[:12]}, which it is measured beside, is not in the store",
            where=str(reference),
            fix="put it back there, or make a new candidate: emuflow run",
        )
    verify(reference, home.keys, expected_digest=digests["fp32"])
    settings = read_json(folder / SETTINGS_FILE)
    if not settings_are(settings, origin.settings_digest):
        raise DigestMismatchError(
            f"these are not the settings that package {digest[:12]} was made with: its manifest names others",
            where=str(folder / SETTINGS_FILE),
            fix="put the file back as the run left it; --set changes what a measurement goes by",
        )
    if tokenizers_digest(folder / "tokenizers") != origin.tokenizers_digest:
        raise DigestMismatchError(
            f"these are not the tokenizers that package {digest[:12]} was made with: its manifest names others",
            where=str(folder / "tokenizers"),
            fix="put them back as the run left them",
        )
    tracking = read_json(folder / FILE_NAME).get("tracking", {})
    return Exported(digest, origin.preset, folder, settings, tracking.get("parent"))

"""What a lineage is read from: the home's files, and, where they answer, the release store and MLflow's registry."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import EmuflowError, UsageError
from common.home import Home
from common.redaction import redact_text
from components.promote.settings import PromotionSettings
from pipelines.connection import Connection, connect, nothing_released, release_store
from pipelines.record import FILE_NAME, RunRecord
from serving.release.rows import CANDIDATE_STAGE, CHAMPION_STAGE, STAGING_STAGE, Release

STAGES = (CHAMPION_STAGE, STAGING_STAGE, CANDIDATE_STAGE)
"""The furthest one first."""
_RUN_ID = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Away:
    """A store that does not answer, and why."""

    reason: str


@dataclass(frozen=True)
class Version:
    """A version of MLflow's registry."""

    number: str
    tags: Mapping[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()

    @property
    def package(self) -> str | None:
        return self.tags.get("package_digest")


@dataclass(frozen=True)
class Sources:
    """Everything that is known, read once: a lineage is then a function of it and of the files."""

    home: Home
    records: Mapping[str, RunRecord]
    """Every readable `run.json`, by run id, the newest run first."""
    releases: tuple[Release, ...] | Away
    """Rows of all stages, the newest of each stage first."""
    versions: tuple[Version, ...] | Away

    def run_folder(self, run_id: str) -> Path | None:
        """`None` for what cannot be a run's id: a manifest that does not verify may say anything."""
        return self.home.run(run_id) if _RUN_ID.fullmatch(run_id) else None

    def record_of(self, digest: str) -> RunRecord | None:
        """The run that made a package, by what its own record says."""
        made = (record for record in self.records.values() if not record.measures)
        return next((record for record in made if record.candidate == digest), None)

    def measurements_of(self, digest: str) -> list[RunRecord]:
        """The runs that measured a package once more, the newest first."""
        return [record for record in self.records.values() if record.measures == digest]

    def version_of(self, digest: str) -> str | None:
        """The package's newest number in the registry, by the registry, else by its run's record."""
        if not isinstance(self.versions, Away):
            numbers = [version.number for version in self.versions if version.package == digest]
            if numbers:
                return max(numbers, key=int)
        record = self.record_of(digest)
        return record.version if record else None

    def releases_of(self, digest: str, *, on: str | None = None) -> dict[str, Release]:
        """A package's newest row of each stage that it came to: of all, or, where it was registered with the evidence `on`
        (its sha256), without those that rest on other evidence that it was registered with."""
        if isinstance(self.releases, Away):
            return {}
        rows = [row for row in self.releases if row.digest == digest]
        registered = {row.evidence_digest for row in rows if row.stage == CANDIDATE_STAGE}
        if on in registered:
            rows = [row for row in rows if row.evidence_digest == on or row.evidence_digest not in registered]
        return {stage: row for stage in STAGES if (row := next((r for r in rows if r.stage == stage), None))}


def read_sources(home: Home) -> Sources:
    """Read the records under `home` and ask both stores. Raises `UsageError` where there is no home."""
    if not home.root.is_dir():
        raise UsageError("there is no such folder", where=f"--home {home.root}", fix="run the pipeline: emuflow run")
    records = _records(home)
    try:
        connection = connect(home)
    except EmuflowError as error:  # an address whose password is not kept: the files say enough
        away = Away(redact_text(error.what))
        return Sources(home, records, away, away)
    return Sources(home, records, _releases(home, connection), _versions(home, connection, _model(records)))


def _records(home: Home) -> dict[str, RunRecord]:
    found = {}
    for file in sorted(home.last_run_file.parent.glob(f"*/{FILE_NAME}"), reverse=True):
        try:
            found[file.parent.name] = RunRecord.load(file)
        except (OSError, ValueError, TypeError):
            continue  # the run's own check names it
    return found


def _model(records: Mapping[str, RunRecord]) -> str:
    """The registered model's name, from the newest run's settings."""
    for run in records.values():
        for section in ("promotion", "release"):
            if name := (run.settings.get(section) or {}).get("registered_model"):
                return name
    return PromotionSettings().registered_model


def _releases(home: Home, connection: Connection) -> tuple[Release, ...] | Away:
    if nothing_released(home, connection):
        return Away("this home has no release store yet")
    try:
        with release_store(connection.release_url) as store:
            return tuple(row for stage in STAGES for row in store.history(stage))
    except EmuflowError as error:
        return Away(redact_text(error.what))


def _versions(home: Home, connection: Connection, model: str) -> tuple[Version, ...] | Away:
    if connection.local and not home.has_database:
        return Away("this home has no registry yet")
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(tracking_uri=connection.tracking_uri, registry_uri=connection.tracking_uri)
        wanted = f"name = '{model}'"
        aliases: dict[str, list[str]] = {}
        for registered in client.search_registered_models(wanted):
            for alias, number in registered.aliases.items():
                aliases.setdefault(str(number), []).append(alias)
        found, token = [], None
        while token != "":
            page = client.search_model_versions(wanted, page_token=token)
            found += [
                Version(str(each.version), dict(each.tags), tuple(sorted(aliases.get(str(each.version), []))))
                for each in page
            ]
            token = page.token or ""
        return tuple(sorted(found, key=lambda version: -int(version.number)))
    except (MlflowException, SQLAlchemyError, OSError) as error:
        return Away(f"MLflow at {redact_text(connection.tracking_uri)} does not answer ({type(error).__name__})")

"""MLflow's model registry: every candidate is a version there, with its evidence; the aliases mirror the stages.

The release store decides; the registry shows. What cannot be written here raises `TrackingError`, so that nothing is
promoted without a record.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import TrackingError
from common.redaction import redact_text

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)
_LONGEST_TAG = 4000
CANDIDATE_ALIAS = "candidate"
EVIDENCE_FOLDER = "evidence"
PACKAGE_TAG, EVIDENCE_TAG = "package_digest", "evidence_digest"


@dataclass(frozen=True)
class Evidence:
    """What is registered of one candidate: files by the folder that they go to, and tags of its version."""

    package_digest: str
    evidence_digest: str
    tags: Mapping[str, str]
    files: Mapping[str, list[Path]]


class Registry:
    """One registered model at one tracking server."""

    def __init__(self, model: str, tracking_uri: str | None = None):
        """`tracking_uri` is MLflow's own default (`MLFLOW_TRACKING_URI`) where `None`."""
        self._model = model
        self._uri = tracking_uri
        with _reaching(tracking_uri):
            from mlflow import MlflowClient

            self._client = MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)

    def register(self, evidence: Evidence, run_id: str | None) -> str:
        """Register a candidate and return its version; the same evidence again gives the same version.

        The evidence is logged to the run `run_id`, else to the one that `MLFLOW_RUN_ID` names. The alias `candidate`
        names the newest version, also where an earlier call broke off before it was set.
        """
        run = run_id or os.environ.get("MLFLOW_RUN_ID")
        if not run:
            raise TrackingError("there is no MLflow run to log the evidence to", fix="set MLFLOW_RUN_ID")
        with _reaching(self._uri):
            self._ensure_model()
            found = self._find(evidence.package_digest, evidence.evidence_digest)
            version = str((found or self._create(evidence, run)).version)
            newest = self.version_of(CANDIDATE_ALIAS)
            if newest is None or int(newest) < int(version):
                self._client.set_registered_model_alias(self._model, CANDIDATE_ALIAS, version)
            return version

    def tag(self, version: str, tags: Mapping[str, str]) -> None:
        with _reaching(self._uri):
            for name, value in tags.items():
                self._client.set_model_version_tag(self._model, version, name, value[:_LONGEST_TAG])

    def tag_refused(self, version: str, reason: str) -> None:
        """Show that a promotion was refused. The audit log has it, so a tracking server that is away is only logged."""
        try:
            self.tag(version, {"promotion": "refused", "promotion_reason": reason})
        except TrackingError as error:
            _log.warning("version %s does not show that its promotion was refused: %s", version, error)

    def mirror(self, stage: str, digest: str, evidence_digest: str | None = None) -> bool:
        """Point the alias `stage` at the version of the package that the release store names; returns whether it moved.

        Run at every promotion, it also repairs an alias that a crash left behind.
        """
        with _reaching(self._uri):
            version = self._find(digest, evidence_digest) or self._find(digest)
            if version is None:
                _log.warning("package %s is the %s, but no version of it is registered", digest, stage)
                return False
            if self.version_of(stage) == str(version.version):
                return False
            self._client.set_registered_model_alias(self._model, stage, str(version.version))
            return True

    def version_of(self, alias: str) -> str | None:
        """The version that an alias points at, `None` where it points at none."""
        with _reaching(self._uri):
            models = self._client.search_registered_models(f"name = '{self._model}'")
            return str(models[0].aliases[alias]) if models and alias in models[0].aliases else None

    def version_with(self, package_digest: str, evidence_digest: str) -> str | None:
        """The newest version of a package with just this evidence, `None` where there is none."""
        with _reaching(self._uri):
            found = self._find(package_digest, evidence_digest)
            return str(found.version) if found else None

    def package_of(self, version: str) -> str | None:
        """The digest of the package that a version is, `None` where there is no such version."""
        from mlflow.exceptions import MlflowException

        with _reaching(self._uri):
            try:
                return self._client.get_model_version(self._model, version).tags.get(PACKAGE_TAG)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def fetch_evidence(self, package_digest: str, folder: Path) -> Path | None:
        """Fetch the evidence of a package's newest version into `folder`; the folder that it is in, `None` without one."""
        with _reaching(self._uri):
            found = self._find(package_digest)
            if found is None or not found.run_id:
                return None
            return Path(self._client.download_artifacts(found.run_id, EVIDENCE_FOLDER, str(folder)))

    def _create(self, evidence: Evidence, run: str) -> "ModelVersion":
        for folder, files in evidence.files.items():
            for file in files:
                self._client.log_artifact(run, str(file), folder)
        source = f"{self._client.get_run(run).info.artifact_uri}/package"
        tags = {PACKAGE_TAG: evidence.package_digest, EVIDENCE_TAG: evidence.evidence_digest, **evidence.tags}
        shortened = {name: value[:_LONGEST_TAG] for name, value in tags.items()}
        return self._client.create_model_version(self._model, source, run_id=run, tags=shortened)

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        if self._client.search_registered_models(f"name = '{self._model}'"):
            return
        try:
            self._client.create_registered_model(
                self._model, description="Emuflow's generator, one version a candidate"
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run made it meanwhile
                raise

    def _find(self, package_digest: str, evidence_digest: str | None = None) -> "ModelVersion | None":
        """The newest version of a package, with just this evidence where it is given."""
        wanted = f"name = '{self._model}' and tags.{PACKAGE_TAG} = '{package_digest}'"
        if evidence_digest is not None:
            wanted += f" and tags.{EVIDENCE_TAG} = '{evidence_digest}'"
        versions = self._client.search_model_versions(wanted)
        return max(versions, key=lambda version: int(version.version), default=None)


@contextmanager
def _reaching(uri: str | None) -> Iterator[None]:
    """Turn whatever MLflow raises into a `TrackingError`.

    Without its cause: MLflow's own messages hold the address with its password, and a log shows a chain of errors.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        first_line = (redact_text(str(error)).splitlines() or [type(error).__name__])[0]
        raise TrackingError(
            f"the tracking server did not take the record: {first_line}",
            where=redact_text(uri or os.environ.get("MLFLOW_TRACKING_URI", "MLflow")),
            fix="make it reachable and run the promotion again; nothing was promoted",
        ) from None

"""`emuflow promote`, `rollback` and `audit`, for the command line: which package, which evidence, which policy."""

import getpass
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import psutil

from common.errors import GateError, UsageError
from common.files import read_json
from common.home import Home
from components.promote.settings import PromotionSettings
from pipelines.connection import (
    Connection,
    connect,
    no_experiments,
    nothing_released,
    reaching_release_store,
    release_store,
)
from pipelines.record import measurements_of, verdict_folders
from pipelines.run_folder import SETTINGS_FILE
from pipelines.settings import PlatformSettings
from pipelines.versions import is_digest, is_number
from serving.release.rows import CANDIDATE_STAGE

if TYPE_CHECKING:
    from components.promote.advance import AdvanceResult
    from components.promote.registry import Registry
    from components.promote.rollback import RollbackResult
    from serving.release.audit import Entry
    from serving.release.rows import Approval
    from serving.release.verification import Verification


def promote_version(
    home: Home, version: str, to: Literal["staging", "champion"], approval: "Approval | None"
) -> "AdvanceResult":
    """Promote a version of the registry, or a package by the beginning of its digest, on the verdict of its own run, or of
    the measurement that registered it last.

    Raises `UsageError` where there is no such version or package, and what `components.promote.advance.advance` does.
    """
    from components.promote.advance import advance
    from components.promote.registry import Registry

    connection = connect_released(home)
    digest = package_of(home, version, connection)
    run_id = _run_of(home, digest)
    of_run = _run_settings(home, run_id)
    model = of_run.registered_model if of_run else _registered_model(home)
    registry = Registry(model, connection.tracking_uri)
    registered = _last_evidence(digest, connection)
    verdict_folder = _verdict_folder(home, run_id, digest, registered, registry)
    with reaching_release_store(connection.release_url), verdict_folder as verdict:
        return advance(
            model,
            of_run,
            digest,
            to,
            verdict,
            actor=getpass.getuser(),
            approval=approval,
            package_store=home.packages,
            key_folder=home.keys,
            release_url=connection.release_url,
            experiments_url=None if no_experiments(home, connection) else connection.experiments_url,
            serving=home.serving,
            tracking_uri=connection.tracking_uri,
            other_verdicts=verdict_folders(home),
        )


def roll_back_to(
    home: Home,
    version: str | None,
    taken_back: str | None,
    reason: str | None,
    tell: Callable[["RollbackResult"], None],
) -> "RollbackResult":
    """Put back the champion before this one, or the earlier one that `version` names; only if the version `taken_back` is
    the champion, where one is named. Seconds count from the start of this process. Errors as in `components.promote.rollback.roll_back`."""
    from components.promote.rollback import roll_back

    connection, model = connect_released(home), _registered_model(home)
    target = _former_champion(version, connection, model) if version else None
    meant = _former_champion(taken_back, connection, model) if taken_back else None
    with reaching_release_store(connection.release_url):
        return roll_back(
            model,
            target,
            taken_back=meant,
            actor=getpass.getuser(),
            reason=reason,
            package_store=home.packages,
            key_folder=home.keys,
            release_url=connection.release_url,
            serving=home.serving,
            tracking_uri=connection.tracking_uri,
            experiments_url=None if no_experiments(home, connection) else connection.experiments_url,
            started=min(time.time(), psutil.Process().create_time()),
            tell=tell,
        )


def verify_log(home: Home) -> "Verification":
    """Check the audit log of this home's release store. Raises `TrackingError` where it does not answer."""
    from serving.release.verification import verify_audit_log

    connection = connect_released(home)
    with reaching_release_store(connection.release_url):
        return verify_audit_log(connection.release_url, home.keys)


def read_log(home: Home) -> list["Entry"]:
    """Every entry of the audit log, the newest first."""
    with release_store(connect_released(home).release_url) as store:
        return store.audit_log()[::-1]


def connect_released(home: Home, platform: PlatformSettings | None = None) -> Connection:
    """As `connect`. Raises `UsageError` where nothing was released yet."""
    connection = connect(home, platform)
    if nothing_released(home, connection):
        raise UsageError("nothing was released here", where=str(home.root), fix="run the pipeline: emuflow run")
    return connection


def package_of(home: Home, version: str, connection: Connection) -> str:
    """The digest of the package that `version` names."""
    if is_number(version):
        return _registered(version, _registered_model(home), connection)
    names = [path.name for path in home.packages.iterdir()] if home.packages.is_dir() else []
    return _only_match(version, names, str(home.packages))


def _former_champion(version: str, connection: Connection, model: str) -> str:
    """A number is asked of the release store first: a rollback must not need MLflow."""
    with release_store(connection.release_url) as store:
        if is_number(version):
            return store.package_of(model, version) or _registered(version, model, connection)
        names = [release.digest for release in store.history()]
    return _only_match(version, names, "the earlier champions")


def _registered(version: str, model: str, connection: Connection) -> str:
    from components.promote.registry import Registry

    digest = Registry(model, connection.tracking_uri).package_of(version)
    if digest is None:
        raise UsageError(f"there is no version {version}", where=model, fix="see `emuflow history`")
    return digest


def _only_match(beginning: str, names: list[str], where: str) -> str:
    found = {name for name in names if is_digest(beginning) and name.startswith(beginning)}
    if len(found) != 1:
        raise UsageError(
            f"{len(found)} packages match '{beginning}'",
            where=where,
            fix="name a version number, or the first 8 or more characters of a digest: see `emuflow history`",
        )
    return found.pop()


def _run_of(home: Home, digest: str) -> str:
    from serving.package.manifest import read_manifest

    return read_manifest(home.packages / digest).provenance.run_id


def settings_of(home: Home, digest: str) -> PromotionSettings | None:
    """Those of the run that made the package `digest`; `None` where its settings are not here."""
    return _run_settings(home, _run_of(home, digest))


def _run_settings(home: Home, run_id: str) -> PromotionSettings | None:
    file = home.run(run_id) / SETTINGS_FILE
    if not file.is_file():
        return None
    return PromotionSettings.parse(read_json(file).get("promotion", {}), where=str(file))


def _registered_model(home: Home) -> str:
    """The name in the registry that the home's last run used, else the default one. Whatever it is, nothing is promoted
    that is not registered there."""
    if not home.last_run_file.is_file():
        return PromotionSettings().registered_model
    settings = read_json(home.last_run_file)["settings"]
    where = str(home.last_run_file)
    return PromotionSettings.parse(settings.get("promotion", {}), where=where).registered_model


def _last_evidence(digest: str, connection: Connection) -> str | None:
    """The evidence that a package was registered with last, `None` where it never was."""
    with release_store(connection.release_url) as store:
        rows = (row for row in store.history(CANDIDATE_STAGE) if row.digest == digest)
        return next((row.evidence_digest for row in rows), None)


@contextmanager
def _verdict_folder(
    home: Home, run_id: str, digest: str, registered: str | None, registry: "Registry"
) -> Iterator[Path]:
    """The verdict that a package was `registered` with last: from the folder of the run that measured it, or, where another
    machine ran it, from the registry. Where there is none of that, its own run's, which `advance` then refuses."""
    from components.gate.verdict import FILE_NAME, evidence_digest

    own = home.run(run_id) / "verdict"

    def is_registered(folder: Path) -> bool:
        return (folder / FILE_NAME).is_file() and evidence_digest(folder) == registered

    found = own if is_registered(own) else None
    if found is None:  # whoever never measured again reads no other run's record
        again = (home.run(each) / "verdict" for each in measurements_of(home, digest))
        found = next((folder for folder in again if is_registered(folder)), None)
    if found is not None:
        yield found
        return
    with tempfile.TemporaryDirectory(prefix="emuflow-evidence-") as folder:
        fetched = registry.fetch_evidence(digest, Path(folder))
        if own.is_dir() and (fetched is None or not is_registered(fetched)):
            yield own
            return
        if fetched is None:
            raise GateError(
                f"package {digest} has no verdict, neither here nor in the registry",
                where=str(own),
                fix=f"measure it, where its run is: emuflow measure {digest[:12]}",
            )
        yield fetched

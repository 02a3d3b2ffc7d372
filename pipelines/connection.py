"""Which tracking server and release store a command talks to."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import TrackingError, UsageError
from common.files import read_json
from common.home import Home
from common.redaction import HIDDEN, redact_text
from components.step import EXPERIMENTS_URL_VARIABLE, RELEASE_URL_VARIABLE
from pipelines.settings import PlatformSettings, override_platform

if TYPE_CHECKING:
    from serving.release.store import ReleaseStore

TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Connection:
    """Addresses; they may hold passwords."""

    tracking_uri: str
    release_url: str
    experiments_url: str
    local: bool
    """Whether the tracking store is the home's own."""


def connect(home: Home, platform: PlatformSettings | None = None) -> Connection:
    """Settle the addresses (settings, then environment, then the home's SQLite file) and put them into this process's
    environment, where MLflow and the steps find them as they would on a cluster.

    Without `platform`, the settings are those of the home's last run: who asks for its champion means the same store.
    Raises `UsageError` where they hold a password, which is not kept on disk.
    """
    platform = platform or remembered(home)
    tracking_uri = platform.tracking_uri or os.environ.get(TRACKING_VARIABLE) or home.tracking_uri
    release_url = platform.release_url or os.environ.get(RELEASE_URL_VARIABLE) or home.release_url
    local = tracking_uri == home.tracking_uri
    if local:
        home.mlflow_artifacts.mkdir(parents=True, exist_ok=True)
    os.environ |= {TRACKING_VARIABLE: tracking_uri, RELEASE_URL_VARIABLE: release_url}
    _set_defaults()
    experiments_url = os.environ.get(EXPERIMENTS_URL_VARIABLE) or home.experiments_url
    return Connection(tracking_uri, release_url, experiments_url, local)


def nothing_released(home: Home, connection: Connection) -> bool:
    """Whether the release store has not been made yet."""
    return connection.release_url == home.release_url and not home.has_database


def no_experiments(home: Home, connection: Connection) -> bool:
    """Whether the store of A/B tests has not been made yet: looking must not make it."""
    return connection.experiments_url == home.experiments_url and not home.has_experiments


@contextlib.contextmanager
def release_store(release_url: str) -> Iterator["ReleaseStore"]:
    """The release store, for reading, for a block. Raises `TrackingError` where its database does not answer."""
    from serving.release.store import ReleaseStore

    with reaching_release_store(release_url):
        store = ReleaseStore(release_url)
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def reaching_release_store(release_url: str) -> Iterator[None]:
    """Turn what a database raises in the block into a `TrackingError`."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, ImportError) as error:
        reason = redact_text(str(error.__cause__ or error))
        raise TrackingError(
            f"the release store does not answer: {reason}",
            where=redact_text(release_url),
            fix="start its database; install its driver where that is missing",
        ) from None


def remembered(home: Home, overrides: Sequence[str] = ()) -> PlatformSettings:
    """The platform settings of the last run in `home`, but for what the environment or `overrides` say anew.

    Raises `UsageError` where an address holds a password, which is not kept on disk.
    """
    if not home.last_run_file.is_file():
        return override_platform({}, overrides)
    return platform_again(read_json(home.last_run_file)["settings"]["platform"], overrides)


def platform_again(platform: Mapping[str, Any], overrides: Sequence[str]) -> PlatformSettings:
    """The platform settings that a run left on disk, likewise."""
    settings = override_platform(platform, overrides).model_dump()
    for name, variable in (("tracking_uri", TRACKING_VARIABLE), ("release_url", RELEASE_URL_VARIABLE)):
        if os.environ.get(variable):
            settings[name] = None
        elif HIDDEN in str(settings[name]):
            raise UsageError(
                "the run's address holds a password, which is not kept on disk",
                where=f"platform.{name}",
                fix=f"give it again in the environment variable {variable}",
            )
    return PlatformSettings.parse(settings)


def _set_defaults() -> None:
    """Where the user has not chosen otherwise: a tracking server that is away is noticed in seconds, and MLflow keeps
    its migrations to itself."""
    for name, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(name, value)

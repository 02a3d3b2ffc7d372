"""What follows the release store: MLflow's aliases, the running server and the canary that was compared with the champion.

The store already holds the decision. What cannot follow now is made to by the next promotion or rollback, and by the
server itself, which asks the store.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from common.errors import EmuflowError, TrackingError
from common.redaction import redact_text
from components.promote.canary import end_overtaken
from components.promote.registry import Registry
from serving.release.rows import CHAMPION_STAGE, STAGING_STAGE
from serving.release.store import ReleaseStore

_log = logging.getLogger(__name__)
ServerState = Literal["not running", "updated", "left as it was", "another champion", "failed"]
_PAUSE_S = 0.05
_PROMPT = "a"


def aliases(registry: Callable[[], Registry], store: ReleaseStore) -> bool:
    """Point the aliases `staging` and `champion` at the versions that the store wants; whether MLflow took that."""
    try:
        for stage in (STAGING_STAGE, CHAMPION_STAGE):
            if release := store.current(stage):
                registry().mirror(stage, release.digest, release.evidence_digest)
        return True
    except TrackingError as error:
        _log.warning("the aliases do not follow yet: %s", error)
        return False


def server(serving: Path, package_store: Path, store: ReleaseStore, digest: str) -> ServerState:
    """Make the running server of the folder `serving` serve the champion, which the package `digest` was made.

    Somebody may have decided otherwise since: what is loaded is the champion of that moment, and `another champion` is
    returned where it is not that package. A server that cannot load it keeps serving the old package and tries again by
    itself, so this does not undo the decision.
    """
    from serving.deployment import follow_if_running

    followed = digest

    def champion() -> str:
        nonlocal followed
        release = store.current(CHAMPION_STAGE)
        assert release is not None, "a package was made the champion, so there is one"
        followed = release.digest
        return followed

    try:
        state = follow_if_running(serving, package_store, champion)
    except (EmuflowError, SQLAlchemyError) as error:
        _log.error("the running server does not serve the champion yet: %s", redact_text(str(error)))
        return "failed"
    return state if followed == digest else "another champion"


def canary(experiments_url: str | None, store: ReleaseStore, actor: str) -> None:
    """End the canary that was compared with another champion than that of now. `experiments_url` is None where there was
    never one. What cannot be ended now is when somebody looks at it, as `emuflow serve` does."""
    if experiments_url is None:
        return

    def champion() -> str | None:
        release = store.current()
        return release.digest if release else None

    try:
        end_overtaken(experiments_url, champion, actor=actor)
    except (EmuflowError, SQLAlchemyError) as error:
        _log.warning("the canary beside the former champion has not ended yet: %s", redact_text(str(error)))


def answers(serving: Path, digest: str, *, timeout_s: float = 30.0) -> bool:
    """Ask the running server for images until one comes from package `digest`; whether one came in time."""
    from emuflow_client import GeneratorClient, GeneratorError
    from serving.deployment import read_state

    deadline = time.monotonic() + timeout_s
    while (state := read_state(serving)) is not None and time.monotonic() < deadline:
        try:
            with GeneratorClient(state.grpc_endpoint, timeout_s=timeout_s, retries=0) as client:
                if client.generate(_PROMPT).version == digest:
                    return True
        except GeneratorError as error:
            _log.warning("the server did not answer: %s", error)
        time.sleep(_PAUSE_S)
    return False

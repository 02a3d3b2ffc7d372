"""The policy that a promotion goes by: the one that its evidence was registered under, whatever the settings say later."""

from typing import Any

from common.errors import GateError
from components.promote.settings import PromotionSettings
from serving.release.store import ReleaseStore

_NOTED = {"approval", "canary", "canary_policy"}


def policy_to_note(settings: PromotionSettings) -> dict[str, Any]:
    """What the audit log keeps of a candidate beside its row."""
    return {"policy": settings.model_dump(mode="json", include=_NOTED)}


def version_to_note(model: str, version: str) -> dict[str, Any]:
    """What the audit log keeps of a promotion beside its row: a rollback to this number then needs no registry."""
    return {"model": model, "version": version}


def registered_policy(
    store: ReleaseStore, digest: str, evidence_digest: str | None, of_run: PromotionSettings | None
) -> PromotionSettings:
    """The policy that package `digest` was registered under with this evidence; where it was registered before policies
    were noted, that of its run, if its settings could be read (`of_run`).

    Raises `GateError` where there is neither, or the registration was altered: nobody can tell then whether a person or a
    canary is wanted.
    """
    noted = store.noted(digest, evidence_digest) if evidence_digest else {}
    if "policy" in noted:
        return PromotionSettings.parse(noted["policy"], where=f"the registration of package {digest}")
    if of_run is not None:
        return of_run
    raise GateError(
        "whether it needs a person's approval or a canary is not known: it was registered without its policy, and the "
        "settings of its run are not here",
        where=f"package {digest}",
        fix=f"put the run's folder with its settings.json back, or register it anew: emuflow measure {digest[:12]}",
    )

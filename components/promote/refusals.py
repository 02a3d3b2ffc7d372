"""What is refused leaves its reason in the audit log."""

from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import DigestMismatchError, GateError, SignatureError
from serving.release.store import ReleaseStore


@contextmanager
def refusals_recorded(store: ReleaseStore, stage: str, digest: str, actor: str) -> Iterator[None]:
    """Whatever is wrong with the evidence or the package goes into the audit log as the reason of the refusal."""
    try:
        yield
    except (GateError, SignatureError, DigestMismatchError) as refusal:
        store.refuse(stage, digest, evidence_digest=None, actor=actor, reason=str(refusal))
        raise

"""An operator's machine that only verifies: what it cannot sign it does not begin, and what is trusted stays trusted."""

from collections.abc import Callable

import pytest

from common.errors import SignatureError
from serving.package.verify import verify
from serving.release.store import ReleaseStore
from serving.release.verification import verify_audit_log
from tests.components.promote.moves import moved, rolled_back
from tests.components.promote.place import SETTINGS, Candidate, Place


def everything(place: Place) -> tuple:
    """The release store's rows and log, the keys, the registry's versions and its aliases."""
    store = ReleaseStore(place.url)
    rows = [store.history(stage) for stage in ("candidate", "staging", "champion")]
    log, keys = store.audit_log(), {path.name: path.read_bytes() for path in place.home.keys.glob("signing.*")}
    store.close()
    versions = {
        version.version: version.tags
        for version in place.client.search_model_versions(f"name = '{SETTINGS.registered_model}'")
    }
    return rows, log, keys, versions, place.alias("staging"), place.alias("champion")


def roll_back(candidate: Candidate) -> object:
    return rolled_back(candidate.place)


def promote_a_pass(candidate: Candidate) -> object:
    return candidate.promoted()


def promote_by_hand(candidate: Candidate) -> object:
    return moved(candidate, "champion")


def promote_a_fail(candidate: Candidate) -> object:
    champion = ReleaseStore(candidate.place.url).history()[0].digest
    return candidate.judged(accuracy=0.5, champion=champion).promoted()


@pytest.mark.parametrize("act", [roll_back, promote_a_pass, promote_by_hand, promote_a_fail])
def test_without_the_private_key_nothing_is_decided_and_nothing_changes(
    place: Place, champions: tuple[Candidate, Candidate], act: Callable[[Candidate], object]
):
    first, second = champions
    third = place.candidate("run-3").judged(champion=second.int8)
    (place.home.keys / "signing.key").unlink()
    before = everything(place)
    with pytest.raises(SignatureError, match=r"only signing\.pub"):
        act(third)
    assert everything(place) == before
    for package in (first, second, third):
        verify(place.home.packages / package.int8, place.home.keys)
    assert verify_audit_log(place.url, place.home.keys).findings == ()


def test_a_key_that_is_lost_before_the_write_leaves_the_store_as_it_was(
    place: Place, champions: tuple[Candidate, Candidate]
):
    first, second = champions
    store = place.store
    (place.home.keys / "signing.key").unlink()
    before = everything(place)
    with pytest.raises(SignatureError, match=r"only signing\.pub"):
        store.roll_back(first.int8, expected_current=second.int8, actor="operator", reason="it draws ghosts")
    store.close()
    assert everything(place) == before

"""Going back under a real server past an earlier champion that cannot be loaded."""

import shutil
from pathlib import Path

from components.promote.rollback import roll_back
from serving.deployment import read_state
from tests.components.promote.place import SETTINGS, Place
from tests.components.promote.test_crashes import SELDOM_S, serving
from tests.packages import change_and_sign


def test_past_an_earlier_champion_that_cannot_be_loaded_a_second_rollback_goes_further_back(place: Place):
    good, last = (place.candidate(run).int8 for run in ("run-1", "run-2"))
    packages, keys = place.home.packages, place.home.keys

    def broken(package: Path) -> None:
        (package / "1" / "model.py").write_text("raise RuntimeError('it cannot be loaded')\n")

    bad = change_and_sign(Path(shutil.copytree(packages / good, packages / "work")), broken, keys).name
    store, before = place.store, None
    for digest in (good, bad, last):
        store.promote(
            "champion", digest, expected_current=before, evidence_digest=digest, actor="tester", reason="PASS"
        )
        before = digest

    def again() -> tuple[str, str, bool]:
        done = roll_back(
            SETTINGS.registered_model,
            None,
            actor="tester",
            reason="it draws ghosts",
            package_store=packages,
            key_folder=keys,
            release_url=place.url,
            serving=place.home.serving,
            tracking_uri=place.url,
        )
        return done.release.digest, done.server, done.resumed

    with serving(place, SELDOM_S):
        assert again() == (bad, "failed", False)
        assert again() == (good, "updated", False)
        state = read_state(place.home.serving)
        assert state is not None and state.digest == good == place.champion
    store.close()

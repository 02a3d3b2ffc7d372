"""A drawing that hangs is noticed although requests go on coming and are refused: that they are told so moves nothing."""

import shutil
from contextlib import suppress
from pathlib import Path

import pytest

from emuflow_client import GeneratorClient, GeneratorError, TimedOut
from serving.deployment import read_state
from tests.packages import change_and_sign
from tests.serving.served import Served, eventually

SEED = 4242
_SEEDS = "        seeds = [one.seed for one in group]\n"


def hangs_for_one_seed(package: Path) -> None:
    """Of this seed nothing is ever drawn."""
    generator = package / "1" / "runtime" / "generator.py"
    assert _SEEDS in generator.read_text()
    hang = f"        while {SEED} in seeds:\n            time.sleep(1)\n"
    generator.write_text(generator.read_text().replace(_SEEDS, _SEEDS + hang))


def gave_up(client: GeneratorClient) -> bool:
    """Ask for what is not drawn in time; whether there was no image."""
    with suppress(GeneratorError):
        client.generate("a red seven", deadline_ms=500)
        return False
    return True


def test_a_drawing_that_hangs_is_noticed_while_others_come_and_give_up(
    tmp_path: Path, packages: dict[str, Path], key_folder: Path
) -> None:
    store = tmp_path / "store"
    copy = Path(shutil.copytree(packages["int8"], store / "hanging"))
    hanging = change_and_sign(copy, hangs_for_one_seed, key_folder).name
    with Served(tmp_path / "serving", store, key_folder, hanging, stalled_after_s=3) as served:
        eventually(lambda: served.version() == hanging)
        guard, state = served.processes()[0], read_state(served.folder)
        assert state is not None
        with GeneratorClient(state.grpc_endpoint, timeout_s=5, retries=0) as client:
            with pytest.raises(TimedOut):
                client.generate("a red seven", seed=SEED, deadline_ms=500)
            eventually(lambda: gave_up(client) and not guard.is_running(), timeout_s=30)
        eventually(lambda: served.version() == hanging)

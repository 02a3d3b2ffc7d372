"""What is served follows a promotion of another process, and a bad package changes nothing."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import ServerError, SignatureError
from serving.deployment import EmbeddedDeployment, read_state, reconcile_if_running
from tests.packages import change_and_sign
from tests.serving.served import Served, eventually


def unanswering(package: Path) -> None:
    """Loads and passes its own check, then fails every request, its warm-up first."""
    model = package / "1" / "model.py"
    model.write_text(
        model.read_text().replace("asked = parse(", "raise RuntimeError('no answer')\n            asked = (")
    )


def broken(package: Path) -> None:
    (package / "1" / "engine" / "fine.onnx").write_bytes(b"no graph")


def test_a_promotion_reconciles_the_server_of_another_process(
    served: Served, packages: dict[str, Path], package_store: Path
) -> None:
    served.desired = packages["fp32"].name
    assert reconcile_if_running(served.folder, package_store, packages["fp32"].name) == "updated"
    assert served.version() == packages["fp32"].name
    assert not EmbeddedDeployment(served.folder, package_store).reconcile(packages["fp32"].name)


@pytest.mark.parametrize("change", [broken, unanswering])
def test_fault_14_a_bad_package_is_removed_and_the_old_one_serves_on(
    served: Served,
    packages: dict[str, Path],
    package_store: Path,
    key_folder: Path,
    tmp_path: Path,
    change: Callable[[Path], None],
) -> None:
    good = packages["int8"].name
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    bad = change_and_sign(Path(shutil.copytree(store / good, store / "bad")), change, key_folder)
    with pytest.raises(ServerError):
        reconcile_if_running(served.folder, store, bad.name)
    eventually(lambda: served.version() == good)
    assert (served.folder / "repository" / "models" / "generator" / "manifest.json").is_file()
    state = read_state(served.folder)
    assert state is not None and state.digest == good


def test_fault_22_an_altered_package_is_never_served(
    served: Served, packages: dict[str, Path], package_store: Path, tmp_path: Path
) -> None:
    store = Path(shutil.copytree(package_store, tmp_path / "store"))
    (store / packages["fp32"].name / "1" / "model.py").write_text("altered")
    with pytest.raises(SignatureError):
        reconcile_if_running(served.folder, store, packages["fp32"].name)
    assert served.version() == packages["int8"].name


def test_without_a_server_nothing_is_reconciled(tmp_path: Path, package_store: Path) -> None:
    assert reconcile_if_running(tmp_path, package_store, "0" * 64) == "not running"


def test_a_server_of_a_package_of_its_own_ignores_promotions(
    tmp_path: Path, packages: dict[str, Path], package_store: Path, key_folder: Path
) -> None:
    """Its clients never get another model, not even for the moment until it would find out."""
    own, champion = packages["int8"].name, packages["fp32"].name
    with Served(tmp_path, package_store, key_folder, own, follows_champion=False) as pinned:
        eventually(lambda: pinned.version() == own)
        assert reconcile_if_running(tmp_path, package_store, champion) == "left as it was"
        assert pinned.version() == own
        eventually(lambda: [change.digest for change in pinned.changes] == [own])  # told a moment after it answers

"""Fault 22: a package that is not exactly what was signed is refused."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import SignatureError
from common.files import files_under
from serving.package.manifest import read_manifest
from serving.package.signing import check_signature, sign
from serving.package.verify import verify
from serving.repository import ModelRepository


@pytest.fixture
def package(packages: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(packages["int8"], tmp_path / packages["int8"].name))


def test_a_package_as_built_is_verified(package: Path, key_folder: Path) -> None:
    manifest = verify(package, key_folder, expected_digest=package.name)
    assert manifest == read_manifest(package)
    assert manifest.provenance.run_id == "run-1"


def test_fault_22_one_altered_byte_in_any_file_is_refused(package: Path, key_folder: Path) -> None:
    for path in files_under(package):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :] if content else b"x")
        with pytest.raises(SignatureError):
            verify(package, key_folder)
        path.write_bytes(content)
    verify(package, key_folder)


def drop_signature(package: Path) -> None:
    (package / "manifest.sig").unlink()


def drop_file(package: Path) -> None:
    (package / "1" / "engine" / "fine.onnx").unlink()


def add_file(package: Path) -> None:
    (package / "1" / "extra.py").write_text("")


def add_link(package: Path) -> None:
    (package / "1" / "link.py").symlink_to("model.py")


def link_file(package: Path) -> None:
    model = package / "1" / "model.py"
    outside = model.rename(package.parent / "model.py")
    model.symlink_to(outside)


def link_folder(package: Path) -> None:
    runtime = package / "1" / "runtime"
    outside = runtime.rename(package.parent / "runtime")
    runtime.symlink_to(outside)


@pytest.mark.parametrize("change", [drop_signature, drop_file, add_file, add_link, link_file, link_folder])
def test_fault_22_a_missing_or_foreign_file_is_refused(
    package: Path, key_folder: Path, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    change(package)
    with pytest.raises(SignatureError):
        verify(package, key_folder)
    repository = ModelRepository(tmp_path / "repository", key_folder)
    with pytest.raises(SignatureError):
        repository.materialise(package, "generator")
    assert list(repository.models.iterdir()) == []


def test_fault_22_a_key_that_is_not_trusted_is_refused(package: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sign(b"makes the key pair", other)
    with pytest.raises(SignatureError, match="not by a trusted key"):
        verify(package, other)
    with pytest.raises(SignatureError, match="not by a trusted key"):
        verify(package, tmp_path / "no keys at all")


def test_fault_22_another_package_than_the_desired_one_is_refused(packages: dict[str, Path], key_folder: Path) -> None:
    with pytest.raises(SignatureError, match="this is package"):
        verify(packages["int8"], key_folder, expected_digest=packages["fp32"].name)


def test_another_team_s_public_key_can_be_trusted(package: Path, key_folder: Path, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    sign(b"makes the key pair", ours)
    shutil.copy(key_folder / "signing.pub", ours / "their.pub")
    verify(package, ours)


def test_the_private_key_is_for_its_owner_alone(key_folder: Path, packages: dict[str, Path]) -> None:
    assert (key_folder / "signing.key").stat().st_mode & 0o777 == 0o600


def test_first_uses_at_once_agree_on_one_key(tmp_path: Path) -> None:
    signatures: list[bytes] = []
    threads = [threading.Thread(target=lambda: signatures.append(sign(b"content", tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(signatures) == 8
    for signature in signatures:
        check_signature(b"content", signature, tmp_path)

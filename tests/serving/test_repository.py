"""What lies in a model repository is verified in its place before it is loaded from there again."""

from pathlib import Path

import pytest

from common.errors import SignatureError
from serving.package.manifest import read_manifest
from serving.repository import ModelRepository


@pytest.fixture
def repository(tmp_path: Path, packages: dict[str, Path], key_folder: Path) -> ModelRepository:
    made = ModelRepository(tmp_path / "repository", key_folder)
    made.materialise(packages["int8"], "generator")
    return made


@pytest.fixture
def live(repository: ModelRepository) -> Path:
    return repository.models / "generator"


def test_what_was_put_there_verifies_in_its_place(repository: ModelRepository, packages: dict[str, Path]) -> None:
    digest = packages["int8"].name
    assert repository.verified("generator", expected_digest=digest) == read_manifest(packages["int8"])
    assert repository.verified("newcomer") is None


def test_fault_22_what_was_altered_there_is_refused(repository: ModelRepository, live: Path) -> None:
    weights = live / "1" / "engine" / "weights.bin"
    weights.write_bytes(bytes([weights.read_bytes()[0] ^ 1]) + weights.read_bytes()[1:])
    with pytest.raises(SignatureError, match="was altered"):
        repository.verified("generator")


def test_fault_22_another_package_than_the_one_that_is_to_be_loaded_is_refused(
    repository: ModelRepository, packages: dict[str, Path]
) -> None:
    with pytest.raises(SignatureError, match="this is package"):
        repository.verified("generator", expected_digest=packages["fp32"].name)


def test_an_unsigned_file_is_refused_unless_it_is_one_that_belongs_there(
    repository: ModelRepository, live: Path
) -> None:
    (live / "graphs.json").write_text("{}")
    repository.verified("generator", besides={"graphs.json"})
    with pytest.raises(SignatureError, match="does not list"):
        repository.verified("generator")


def test_fault_22_bytecode_that_nobody_has_signed_is_gone_before_a_load(
    repository: ModelRepository, live: Path
) -> None:
    """Python leaves it at each load, and runs it in the place of the source at the next one."""
    for folder in (live / "1", live / "1" / "runtime"):
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "model.cpython-311.pyc").write_bytes(b"planted")
    repository.verified("generator")
    assert not list(live.rglob("__pycache__"))


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"])
def test_a_package_whose_manifest_is_none_has_no_digest(
    repository: ModelRepository, live: Path, content: bytes | None
) -> None:
    """So that it is replaced like any other one that is not wanted."""
    manifest = live / "manifest.json"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    assert repository.digest("generator") is None
    with pytest.raises(SignatureError):
        repository.verified("generator")

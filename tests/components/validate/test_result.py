"""One proof for every step that needs a validated table."""

from pathlib import Path

import pytest

from common.errors import DataError, DigestMismatchError
from common.files import write_json
from components.samples import SAMPLES_FILE, TableWriter, image_sample, table_sha256
from components.validate.result import RESULT_FILE, require_validated
from tests.components.data import png


def write(folder: Path, seed: int) -> Path:
    folder.mkdir(exist_ok=True)
    with TableWriter(folder / SAMPLES_FILE) as writer:
        writer.write(
            image_sample(
                source="a.tar", member="1", payload=png(seed), caption="a", mime="image/png", width=32, height=32
            )
        )
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "table", 1)


def state(folder: Path, **result: object) -> Path:
    write_json(folder / RESULT_FILE, result)
    return folder


def test_a_table_that_passed_gives_its_digest(table, tmp_path):
    validation = state(tmp_path / "validation", success=True, table_sha256=table_sha256(table))
    assert require_validated(table, validation) == table_sha256(table)


@pytest.mark.parametrize("success", [False, None, "yes"])
def test_a_table_that_did_not_pass_is_refused(table, tmp_path, success):
    validation = state(tmp_path / "validation", success=success, table_sha256=table_sha256(table))
    with pytest.raises(DataError, match="did not pass"):
        require_validated(table, validation)


def test_a_result_that_says_nothing_is_no_pass(table, tmp_path):
    with pytest.raises(DataError, match=r"no result\.json"):
        require_validated(table, tmp_path)
    with pytest.raises(DataError, match="did not pass"):
        require_validated(table, state(tmp_path / "empty", table_sha256=table_sha256(table)))
    with pytest.raises(DigestMismatchError):
        require_validated(table, state(tmp_path / "blank", success=True))


def test_fault_04_a_table_that_changed_since_is_refused(table, tmp_path):
    validation = state(tmp_path / "validation", success=True, table_sha256=table_sha256(table))
    write(table, 2)
    with pytest.raises(DigestMismatchError, match="changed since it was validated"):
        require_validated(table, validation)

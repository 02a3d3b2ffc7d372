"""What validation leaves for the steps after it: the proof that a table keeps the contract."""

from pathlib import Path

from common.errors import DataError, DigestMismatchError
from common.files import read_json
from components.samples import table_sha256

RESULT_FILE = "result.json"


def require_validated(table: Path, validation: Path) -> str:
    """The digest of the table in the folder `table`, which is the one that passed this validation.

    Raises `DataError` where there is no result or the table did not pass, `DigestMismatchError` where it changed since.
    """
    result = validation / RESULT_FILE
    if not result.is_file():
        raise DataError(f"no {RESULT_FILE} here", where=str(validation), fix="validate the table first")
    validated = read_json(result)
    if validated.get("success") is not True:
        raise DataError("this table did not pass validation", where=str(validation), fix="see its failed expectations")
    digest = table_sha256(table)
    if digest != validated.get("table_sha256"):
        raise DigestMismatchError(
            "the table changed since it was validated", where=str(table), fix="run again from ingest"
        )
    return digest

"""Validate: hold a Sample table to its contract, before anything rests on it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import ContractError, MetricComputationError
from common.files import atomic_path, sha256_file, write_json
from common.progress import enter_phase
from components.samples import MODALITIES, samples_file
from components.validate.checks import Check, SuiteOutcome, open_context, run_suite
from components.validate.metadata import metadata_table, schema_table
from components.validate.result import RESULT_FILE
from components.validate.settings import ValidateSettings

_LONGEST_VALUE = 100


@dataclass(frozen=True)
class Validated:
    """The digest of the table that kept the contract, how many checks it passed, and the page that shows them."""

    table_sha256: str
    expectations: int
    data_docs: str


def validate(settings: ValidateSettings, table: Path, result: Path, docs: Path, curated: bool) -> Validated:
    """Check the Sample table in the folder `table`; write `result/result.json` and a page of the Data Docs under `docs`.

    `curated` also asks for unique contents. Raises `ContractError` with the failed expectations and example rows, after
    `result.json` is written; `MetricComputationError` where a check itself broke, which says nothing about the data.
    """
    digest = sha256_file(samples_file(table))
    enter_phase(0, 3, "loading Great Expectations")
    context = open_context(docs)
    from components.validate.suite import row_expectations, schema_expectations, share_column

    enter_phase(1, 3, "checking columns and types")
    stage = "curated" if curated else "ingested"
    outcome = run_suite(
        context,
        f"{stage}_schema",
        schema_table(table),
        schema_expectations(),
        ["column"],
        settings.example_rows,
    )
    if all(check.ok for check in outcome.checks):
        enter_phase(2, 3, "checking rows")
        frame = metadata_table(table)
        frame = frame.assign(**{share_column(name): (frame["modality"] == name).astype("int8") for name in MODALITIES})
        expectations = row_expectations(settings, curated=curated)
        rows = run_suite(context, f"{stage}_samples", frame, expectations, ["id", "source"], settings.example_rows)
        outcome = SuiteOutcome(outcome.checks + rows.checks, rows.page)
    _write_result(result, digest, outcome)
    _refuse_broken_checks(outcome.checks, table)
    _refuse_broken_contract(outcome, table)
    return Validated(table_sha256=digest, expectations=len(outcome.checks), data_docs=outcome.page)


def _write_result(folder: Path, digest: str, outcome: SuiteOutcome) -> None:
    with atomic_path(folder) as temporary:
        temporary.mkdir(parents=True)
        write_json(
            temporary / RESULT_FILE,
            {
                "success": all(check.ok for check in outcome.checks),
                "table_sha256": digest,
                "expectations": [asdict(check) for check in outcome.checks],
                "failed": [asdict(check) for check in outcome.checks if not check.ok and check.error is None],
                "errors": [asdict(check) for check in outcome.checks if check.error is not None],
                "data_docs": outcome.page,
            },
        )


def _refuse_broken_checks(checks: Sequence[Check], table: Path) -> None:
    broken = [check for check in checks if check.error is not None]
    if broken:
        listed = "\n".join(f"  {check.expectation}({check.target}): {check.error}" for check in broken)
        raise MetricComputationError(
            f"{len(broken)} checks could not be computed:\n{listed}",
            where=str(table),
            fix="this says nothing about the data: correct the check, or report it",
        )


def _refuse_broken_contract(outcome: SuiteOutcome, table: Path) -> None:
    failed = [check for check in outcome.checks if not check.ok]
    if failed:
        raise ContractError(
            f"{len(failed)} expectations failed:\n" + "\n".join(_describe(check) for check in failed),
            where=str(table),
            fix=f"see {outcome.page}",
        )


def _describe(check: Check) -> str:
    found = f"observed {check.observed}" if check.observed is not None else f"{check.unexpected} rows"
    lines = [f"  {check.expectation}({check.target}) {check.bounds or ''}: {found}"]
    lines += [
        f"    {', '.join(f'{key}={_short(value)}' for key, value in example.items())}" for example in check.examples
    ]
    return "\n".join(lines)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}… ({len(text)} characters)"

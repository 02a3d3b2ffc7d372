"""Run expectations over a data frame with Great Expectations, and say plainly what came out."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations.data_context.data_context.file_data_context import FileDataContext
    from great_expectations.expectations.expectation import Expectation

TELEMETRY_VARIABLE = "GX_ANALYTICS_ENABLED"
"""Must be "false" before the first import of great_expectations."""


@dataclass(frozen=True)
class Check:
    """The outcome of one expectation.

    `error` is the message of an exception inside a metric: then `ok` says nothing about the data.
    """

    expectation: str
    target: str
    ok: bool
    bounds: dict[str, Any]
    observed: Any
    unexpected: int
    examples: list[dict[str, Any]]
    error: str | None


@dataclass(frozen=True)
class SuiteOutcome:
    """All checks of a suite and its page in the Data Docs."""

    checks: list[Check]
    page: str


def open_context(folder: Path) -> "FileDataContext":
    """The file context under `folder`, made on first use. Telemetry and progress bars are off."""
    os.environ[TELEMETRY_VARIABLE] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    folder.mkdir(parents=True, exist_ok=True)
    context = gx.get_context(mode="file", project_root_dir=folder)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    return context


def run_suite(
    context: "FileDataContext",
    name: str,
    frame: "pd.DataFrame",
    expectations: "Sequence[Expectation]",
    row_names: Sequence[str],
    example_rows: int,
) -> SuiteOutcome:
    """Check `frame`, write the suite's page, and return every outcome. `row_names` are the columns that name a row."""
    import great_expectations as gx
    from great_expectations.checkpoint.actions import UpdateDataDocsAction

    asset = context.data_sources.add_or_update_pandas(name).add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("whole")
    suite = context.suites.add_or_update(gx.ExpectationSuite(name=name, expectations=list(expectations)))
    definition = context.validation_definitions.add_or_update(
        gx.ValidationDefinition(name=name, data=batch, suite=suite)
    )
    checkpoint = context.checkpoints.add_or_update(
        gx.Checkpoint(
            name=name,
            validation_definitions=[definition],
            actions=[UpdateDataDocsAction(name="data_docs")],
            result_format={
                "result_format": "SUMMARY",
                "unexpected_index_column_names": list(row_names),
                "partial_unexpected_count": example_rows,
            },
        )
    )
    [(identifier, result)] = checkpoint.run(batch_parameters={"dataframe": frame}).run_results.items()
    [site] = context.get_docs_sites_urls(resource_identifier=identifier)
    return SuiteOutcome(
        [_check(dict(outcome.to_json_dict()), row_names) for outcome in result.results], str(site["site_url"])
    )


def _check(outcome: Mapping[str, Any], row_names: Sequence[str]) -> Check:
    configuration, result = outcome["expectation_config"], outcome["result"]
    kwargs = {key: value for key, value in configuration["kwargs"].items() if key != "batch_id"}
    columns = [str(kwargs[key]) for key in ("column", "column_A", "column_B") if key in kwargs]
    return Check(
        expectation=configuration["type"],
        target=", ".join(columns) or "table",
        ok=bool(outcome["success"]),
        bounds={key: value for key, value in kwargs.items() if key not in ("column", "column_A", "column_B")},
        observed=_finite(result.get("observed_value")),
        unexpected=int(result.get("unexpected_count") or 0),
        examples=[_example(row, row_names) for row in result.get("partial_unexpected_index_list") or []],
        error=next(_raised(outcome["exception_info"]), None),
    )


def _example(row: Mapping[str, Any], row_names: Sequence[str]) -> dict[str, Any]:
    """The offending row: what names it, then the values that offend."""
    ordered = [*row_names, *sorted(set(row) - set(row_names))]
    return {key: _finite(row.get(key)) for key in ordered}


def _finite(value: Any) -> Any:
    """None where pandas says NaN: JSON has no such number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _raised(information: Mapping[str, Any]) -> Iterator[str]:
    """The messages of exceptions: Great Expectations keeps them flat, or one record for each metric."""
    records = [information] if "raised_exception" in information else information.values()
    for record in records:
        if record.get("raised_exception"):
            yield str(record.get("exception_message"))

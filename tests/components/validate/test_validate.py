import json
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.errors import ContractError, DataError, MetricComputationError
from components.samples import SAMPLE_SCHEMA, SAMPLES_FILE, image_sample, table_sha256
from components.validate import suite
from components.validate.settings import ValidateSettings
from components.validate.validate import Validated, validate
from tests.components.data import png


@pytest.fixture(scope="module")
def docs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("docs")


def rows(count: int = 6) -> list[dict[str, Any]]:
    return [
        image_sample(
            source="a.tar", member=str(n), payload=png(n), caption=f"caption {n}", mime="image/png", width=32, height=32
        )
        for n in range(count)
    ]


def write(folder: Path, content: list[dict[str, Any]], schema: pa.Schema = SAMPLE_SCHEMA) -> Path:
    folder.mkdir(exist_ok=True)
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    pq.write_table(pa.Table.from_pylist(content, schema=nullable), folder / SAMPLES_FILE)
    return folder


def run(
    tmp_path: Path, docs: Path, content: list[dict[str, Any]], *, curated: bool = False, **settings: Any
) -> Validated:
    table = write(tmp_path / "table", content)
    return validate(ValidateSettings.parse(settings), table, tmp_path / "result", docs, curated)


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "result" / "result.json").read_text())


def test_a_good_table_passes_and_leaves_its_digest_and_a_page(tmp_path, docs):
    outcome = run(tmp_path, docs, rows(), curated=True)
    written = result(tmp_path)
    assert written["success"] is True
    assert written["failed"] == written["errors"] == []
    assert written["table_sha256"] == outcome.table_sha256 == table_sha256(tmp_path / "table")
    assert len(written["expectations"]) == outcome.expectations > 20
    page = Path(urlparse(outcome.data_docs).path)
    assert page.is_relative_to(docs)
    assert "expect" in page.read_text().lower()


def test_equal_contents_break_the_contract_only_after_curate(tmp_path, docs):
    content = rows()
    content[5] = {**content[5], "payload": content[0]["payload"], "content_sha256": content[0]["content_sha256"]}
    run(tmp_path, docs, content, curated=False)
    with pytest.raises(ContractError, match=r"be_unique\(content_sha256\)"):
        run(tmp_path, docs, content, curated=True)


@pytest.mark.parametrize(
    ("change", "expectation"),
    [
        ({"text": None}, "expect_column_values_to_not_be_null(text)"),
        ({"text": "x" * 2001}, "expect_column_value_lengths_to_be_between(text)"),
        ({"width": 0}, "expect_column_values_to_be_between(width)"),
        ({"height": None}, "expect_column_values_to_not_be_null(height)"),
        ({"mime": "image/gif"}, "expect_column_values_to_be_in_set(mime)"),
        ({"modality": "smell"}, "expect_column_values_to_be_in_set(modality)"),
        ({"source": None}, "expect_column_values_to_not_be_null(source)"),
        ({"payload": b""}, "expect_column_values_to_be_between(payload_bytes)"),
        ({"payload": b"other bytes"}, "expect_column_pair_values_to_be_equal(content_sha256, payload_sha256)"),
    ],
)
def test_a_broken_contract_stops_with_the_expectation_and_example_rows(tmp_path, docs, change, expectation):
    content = rows()
    content[2] = {**content[2], **change}
    with pytest.raises(ContractError) as caught:
        run(tmp_path, docs, content)
    assert expectation in str(caught.value)
    assert content[2]["id"] in str(caught.value)
    written = result(tmp_path)
    assert written["success"] is False
    assert any(content[2]["id"] == example["id"] for failed in written["failed"] for example in failed["examples"])


def test_a_wrong_type_or_a_missing_column_breaks_the_contract(tmp_path, docs):
    schema = SAMPLE_SCHEMA.set(SAMPLE_SCHEMA.get_field_index("width"), pa.field("width", pa.string()))
    schema = schema.remove(schema.get_field_index("license"))
    table = write(tmp_path / "table", [{**row, "width": "32"} for row in rows()], schema)
    with pytest.raises(ContractError) as caught:
        validate(ValidateSettings(), table, tmp_path / "result", docs, False)
    assert "column=width, contract_type=int32, type=string" in str(caught.value)
    assert "column=license, contract_type=string, type=absent" in str(caught.value)


def test_a_file_that_is_no_table_is_bad_data(tmp_path, docs):
    (tmp_path / SAMPLES_FILE).write_bytes(b"not Parquet at all")
    with pytest.raises(DataError, match="not a Parquet table"):
        validate(ValidateSettings(), tmp_path, tmp_path / "result", docs, False)


def test_too_few_rows_and_a_share_out_of_bounds_break_the_contract(tmp_path, docs):
    with pytest.raises(ContractError, match=r"row_count_to_be_between.*observed 6"):
        run(tmp_path, docs, rows(), minimum_rows=100)
    with pytest.raises(ContractError, match=r"mean_to_be_between\(is_image\).*observed 1"):
        run(tmp_path, docs, rows(), shares={"image": {"maximum": 0.8}})


def test_an_empty_table_breaks_the_contract(tmp_path, docs):
    with pytest.raises(ContractError, match="row_count"):
        run(tmp_path, docs, [])


def test_an_exception_inside_a_metric_is_reported_as_that_and_never_as_bad_data(tmp_path, docs, monkeypatch):
    import great_expectations.expectations as gxe

    good = suite.row_expectations
    broken = gxe.ExpectColumnValuesToMatchRegex(column="source", regex="(unbalanced")
    monkeypatch.setattr(suite, "row_expectations", lambda *args, **kwargs: [*good(*args, **kwargs), broken])
    with pytest.raises(MetricComputationError, match="nothing about the data"):
        run(tmp_path, docs, rows())
    written = result(tmp_path)
    assert written["success"] is False
    assert written["failed"] == []
    assert [check["expectation"] for check in written["errors"]] == ["expect_column_values_to_match_regex"]


def test_telemetry_is_off(tmp_path, docs):
    import os

    run(tmp_path, docs, rows())
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"

"""The Sample contract as expectations."""

# Great Expectations documents `import great_expectations.expectations as gxe` but does not mark the names as exported.
# pyright: reportPrivateImportUsage=false

from typing import TYPE_CHECKING

import great_expectations.expectations as gxe

from components.images import MIMES
from components.samples import MODALITIES
from components.validate.settings import ValidateSettings

if TYPE_CHECKING:
    from great_expectations.expectations.expectation import Expectation

_ALWAYS = ("id", "content_sha256", "document_id", "position", "modality", "source")
_OF_AN_IMAGE = ("text", "mime", "width", "height", "payload_bytes")
_SHA256 = r"^[0-9a-f]{64}$"
_IS_IMAGE = 'modality == "image"'


def schema_expectations() -> "list[Expectation]":
    """The columns and their types, over the table that `metadata.schema_table` makes."""
    return [
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="type", column_B="contract_type", description="Each column has the type of the Sample contract"
        )
    ]


def row_expectations(settings: ValidateSettings, *, curated: bool) -> "list[Expectation]":
    """The values, over the table that `metadata.metadata_table` makes, to which shares of modalities were added.

    `curated` also asks that every content is there once.
    """
    unique = ("id", "content_sha256") if curated else ("id",)
    return [
        gxe.ExpectTableRowCountToBeBetween(min_value=settings.minimum_rows, description="There are enough rows"),
        *(gxe.ExpectColumnValuesToNotBeNull(column=name) for name in _ALWAYS),
        *(
            gxe.ExpectColumnValuesToNotBeNull(column=name, row_condition=_IS_IMAGE, condition_parser="pandas")
            for name in _OF_AN_IMAGE
        ),
        *(gxe.ExpectColumnValuesToBeUnique(column=name) for name in unique),
        gxe.ExpectColumnValuesToMatchRegex(column="id", regex=_SHA256),
        gxe.ExpectColumnValuesToBeInSet(column="modality", value_set=list(MODALITIES)),
        gxe.ExpectColumnValuesToBeInSet(
            column="mime",
            value_set=sorted(set(MIMES.values())),
            row_condition=_IS_IMAGE,
            condition_parser="pandas",
        ),
        gxe.ExpectColumnValueLengthsToBeBetween(
            column="text",
            min_value=1,
            max_value=settings.max_caption_chars,
            description="Captions are neither empty nor endless",
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(column=name, min_value=1, max_value=settings.max_side)
            for name in ("width", "height")
        ),
        gxe.ExpectColumnValuesToBeBetween(column="payload_bytes", min_value=1),
        gxe.ExpectColumnValuesToBeBetween(column="position", min_value=0),
        gxe.ExpectColumnPairValuesToBeEqual(
            column_A="content_sha256",
            column_B="payload_sha256",
            ignore_row_if="either_value_is_missing",
            description="The content is the one that its digest names",
        ),
        *_shares(settings),
    ]


def share_column(modality: str) -> str:
    """The name of the 0/1 column whose mean is the share of a modality."""
    return f"is_{modality}"


def _shares(settings: ValidateSettings) -> "list[Expectation]":
    return [
        gxe.ExpectColumnMeanToBeBetween(
            column=share_column(modality),
            min_value=getattr(settings.shares, modality).minimum,
            max_value=getattr(settings.shares, modality).maximum,
            description=f"The share of rows that are {modality} is within its bounds",
        )
        for modality in MODALITIES
    ]

"""Settings of validate: the bounds of the Sample contract."""

from typing import Self

from pydantic import Field, model_validator

from common.settings import Section


class ShareBounds(Section):
    """The share of all rows that a modality may have."""

    minimum: float = Field(default=0.0, ge=0, le=1)
    maximum: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError("minimum is above maximum")
        return self


class ModalityShares(Section):
    """Bounds for each modality. A text-to-image generator needs images."""

    text: ShareBounds = ShareBounds()
    image: ShareBounds = ShareBounds(minimum=0.05)
    video: ShareBounds = ShareBounds()
    audio: ShareBounds = ShareBounds()


class ValidateSettings(Section):
    """What a table must keep to."""

    minimum_rows: int = Field(default=1, ge=1)
    max_caption_chars: int = Field(default=2000, ge=1)
    max_side: int = Field(default=32_768, ge=1, description="longer side of an image, in pixels")
    shares: ModalityShares = ModalityShares()
    example_rows: int = Field(default=5, ge=1, le=100, description="offending rows that a failed expectation shows")

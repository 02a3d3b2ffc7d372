"""Settings of curate."""

from pydantic import Field

from common.settings import Section


class CurateSettings(Section):
    """Which rows are not worth training on."""

    minimum_side: int = Field(default=16, ge=1, description="shorter side of an image, in pixels")
    drop_exact_duplicates: bool = Field(default=True, description="keep the first row of each content")

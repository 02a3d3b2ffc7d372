"""Settings of the built-in data."""

from pydantic import Field

from common.settings import Section

SCENE_SIDE = 64
"""Pixels of a scene to each side. The judge reads no other size."""


class DigitWorldSettings(Section):
    """How much of the digit world to make. The evaluation scenes are the same whatever stands here."""

    scenes: int = Field(default=8000, ge=1, le=1_000_000, description="training scenes")
    seed: int = Field(default=0, ge=0, description="another seed draws other training scenes")
    scenes_per_tar: int = Field(default=1000, ge=1, le=100_000)
    planted_duplicates: int = Field(default=80, ge=0, description="exact copies of training scenes, for curate to find")
    stories: int = Field(
        default=0, ge=0, le=100_000, description="documents of several scenes, written after the training scenes"
    )
    scenes_per_story: int = Field(default=26, ge=1, le=60, description="each begins with another glyph")
    broken_members: int = Field(
        default=24, ge=0, description="damaged samples of six kinds in turn, for ingest to quarantine"
    )
